import { signal } from "@preact/signals";

/** How many activities run, of all that the viewer may see. Null until the server has answered. */
export const running = signal<number | null>(null);
