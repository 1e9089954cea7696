/** Icons of 16 × 16, drawn with one stroke in the color of the text. */
const PATHS = {
  search: "M7 2.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 0 1 0-9Zm3.3 7.8 3.2 3.2",
  close: "m4 4 8 8m0-8-8 8",
  check: "m3.5 8.5 3 3 6-7",
  chevron: "m4.5 6.5 3.5 3.5 3.5-3.5",
  back: "M9.5 3.5 5 8l4.5 4.5",
  copy: "M5.5 5.5h7v8h-7zM3.5 10.5v-8h7",
  help: "M6 6a2 2 0 1 1 2.9 1.8c-.6.3-.9.7-.9 1.4m0 2.3v.1",
  up: "M8 12.5v-9m-3.5 3.5L8 3.5 11.5 7",
  clock: "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2Zm0 2.8V8l2.2 1.6",
  newest: "M5 3v10m-2.5-2.5L5 13l2.5-2.5M9.5 4h4m-4 4h3m-3 4h2",
  oldest: "M5 13V3M2.5 5.5 5 3l2.5 2.5M9.5 4h2m-2 4h3m-3 4h4",
  retry: "M12.5 8a4.5 4.5 0 1 1-1.4-3.25M12.5 2.5v3h-3",
  stop: "M4.5 4.5h7v7h-7z",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}
