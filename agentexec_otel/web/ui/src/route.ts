import { signal } from "@preact/signals";

/** Where the page is: below the mount path, `activities/{agent_id}` is a detail and anything else the list. */
export interface Route {
  agentId: string | null;
  /** The list's search, filters and order, as they stand in the URL. */
  search: URLSearchParams;
}

const DETAIL = /^activities\/([^/]+)\/?$/;
const root = new URL(".", document.baseURI);

function read(): Route {
  const path = location.pathname.slice(root.pathname.length);
  return { agentId: DETAIL.exec(path)?.[1] ?? null, search: new URLSearchParams(location.search) };
}

export const route = signal<Route>(read());

/** The address of a detail or of the list. A detail keeps the search of its list, for the way back. */
export function href(agentId: string | null, search?: URLSearchParams): string {
  const url = new URL(agentId === null ? "." : `activities/${agentId}`, root);
  url.search = search?.toString() ?? "";
  return url.href;
}

export function go(to: string, { replace = false } = {}): void {
  history[replace ? "replaceState" : "pushState"](null, "", to);
  route.value = read();
}

/** Clicks on links of the page change the route; the modified ones are the browser's. */
export function onClick(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey)
    return;
  const link = event.target instanceof Element ? event.target.closest("a") : null;
  if (link === null || link.target !== "" || !link.href.startsWith(root.href)) return;
  if (link.href.startsWith(new URL("api/", root).href)) return;
  event.preventDefault();
  go(link.href);
}

addEventListener("popstate", () => {
  route.value = read();
});
