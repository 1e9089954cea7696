import { signal } from "@preact/signals";

const SHOWN_MS = 8_000;

const notice = signal<{ text: string; isError: boolean } | null>(null);
let timer: ReturnType<typeof setTimeout> | undefined;

/** Say the result of an action, on the page and to a screen reader. */
export function say(text: string, { isError = false } = {}): void {
  clearTimeout(timer);
  notice.value = { text, isError };
  timer = setTimeout(() => (notice.value = null), SHOWN_MS);
}

/** Say why an action failed. */
export function sayError(error: unknown): void {
  say(error instanceof Error ? error.message : String(error), { isError: true });
}

/** The one live region of the page. */
export function Notice() {
  const { value } = notice;
  return (
    <div class="notice" role="status" aria-live="polite">
      {value !== null && <span class={value.isError ? "notice-text is-error" : "notice-text"}>{value.text}</span>}
    </div>
  );
}
