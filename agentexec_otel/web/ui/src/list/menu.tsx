import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";

import { Icon } from "../shared/icons";

interface MenuProps {
  label: string;
  /** How many of its values are chosen. */
  count?: number;
  children: (close: () => void) => ComponentChildren;
}

/** A button with a panel below it. Esc, a click elsewhere and leaving it by Tab close the panel. */
export function Menu({ label, count = 0, children }: MenuProps) {
  const [isOpen, setIsOpen] = useState(false);
  const root = useRef<HTMLDivElement>(null);
  const id = useId();
  useEffect(() => {
    if (!isOpen) return;
    const onPointerDown = (event: PointerEvent) => {
      if (!root.current?.contains(event.target as Node)) setIsOpen(false);
    };
    addEventListener("pointerdown", onPointerDown);
    root.current?.querySelector<HTMLElement>(".menu-panel :is(input, button)")?.focus();
    return () => removeEventListener("pointerdown", onPointerDown);
  }, [isOpen]);
  const close = () => {
    setIsOpen(false);
    root.current?.querySelector("button")?.focus();
  };
  return (
    <div
      class="menu"
      ref={root}
      onFocusOut={(event) => {
        const next = event.relatedTarget;
        if (next instanceof Node && !event.currentTarget.contains(next)) setIsOpen(false);
      }}
      onKeyDown={(event) => {
        if (event.key !== "Escape" || !isOpen) return;
        event.preventDefault();
        close();
      }}
    >
      <button
        type="button"
        class={count > 0 ? "button is-filter is-active" : "button is-filter"}
        aria-expanded={isOpen}
        aria-controls={id}
        onClick={() => setIsOpen(!isOpen)}
      >
        {label}
        {count > 0 && <span class="button-count">{count}</span>}
        <Icon name="chevron" />
      </button>
      {isOpen && (
        <div class="menu-panel" id={id} role="group" aria-label={label}>
          {children(close)}
        </div>
      )}
    </div>
  );
}

interface ChoicesProps {
  values: readonly { value: string; label: string; count?: number }[];
  chosen: readonly string[];
  onToggle: (value: string) => void;
}

/** Check boxes in a menu. */
export function Choices({ values, chosen, onToggle }: ChoicesProps) {
  if (values.length === 0) return <p class="menu-note">None so far.</p>;
  return (
    <>
      {values.map(({ value, label, count }) => (
        <label key={value} class="choice">
          <input type="checkbox" checked={chosen.includes(value)} onChange={() => onToggle(value)} />
          <span class="ellipsis">{label}</span>
          {count !== undefined && <span class="choice-count">{count}</span>}
        </label>
      ))}
    </>
  );
}
