import { signal } from "@preact/signals";

/** What the tab is called instead of how many activities run. */
export const title = signal<string | null>(null);
