import { useEffect, useState } from "preact/hooks";

import { Icon } from "./icons";

/** Puts a text on the clipboard. Outside a secure context there is only the old command. */
export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function CopyButton({ text, label, isIcon = false }: { text: string; label: string; isIcon?: boolean }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 2_000);
    return () => clearTimeout(timer);
  }, [copied]);
  const says = copied ? "Copied" : label;
  return (
    <button
      type="button"
      class={isIcon ? "button is-quiet is-icon" : "button is-quiet"}
      {...(isIcon && { "aria-label": says, title: says })}
      onClick={() => void copy(text).then(() => setCopied(true))}
    >
      <Icon name={copied ? "check" : "copy"} />
      {!isIcon && says}
    </button>
  );
}
