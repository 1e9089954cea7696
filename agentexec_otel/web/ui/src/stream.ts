import { signal } from "@preact/signals";

import { apiUrl, type Query } from "./api";
import { now } from "./shared/clock";

/** Whether the page's stream is open. `lost` has the moment (ms, as `now` of the clock) since which it is not. */
export const connection = signal<{ isOpen: boolean; lost: number | null }>({ isOpen: false, lost: null });

const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 10_000;
/** The server sends at least a comment every 15 s, which a browser does not show; its events are what can be seen. */

export type Handlers = Record<string, (data: string, id: string) => void>;

/**
 * Follow a stream of the status API, and continue it after each loss of the connection without a gap or a repeat.
 *
 * A browser reconnects by itself only while the server can be reached; after an error response it gives up. So this
 * opens a new EventSource, with the last id seen as `after`. Returns the function that closes the stream.
 */
export function follow(path: string, query: Query, handlers: Handlers, onOpen?: () => void): () => void {
  let source: EventSource | null = null;
  let last: string | null = null;
  let wait = FIRST_RETRY_MS;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let closed = false;

  function open(): void {
    source = new EventSource(apiUrl(path, last === null ? query : { ...query, after: last }));
    source.onopen = () => {
      wait = FIRST_RETRY_MS;
      connection.value = { isOpen: true, lost: null };
      onOpen?.();
    };
    source.onerror = () => {
      source?.close();
      if (closed) return;
      if (connection.peek().lost === null) connection.value = { isOpen: false, lost: now.peek() };
      timer = setTimeout(open, wait);
      wait = Math.min(wait * 2, LAST_RETRY_MS);
    };
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event: MessageEvent<string>) => {
        if (event.lastEventId) last = event.lastEventId;
        handle(event.data, event.lastEventId);
      });
    }
  }

  open();
  return () => {
    closed = true;
    clearTimeout(timer);
    source?.close();
    if (connection.peek().lost !== null) connection.value = { isOpen: false, lost: null };
  };
}
