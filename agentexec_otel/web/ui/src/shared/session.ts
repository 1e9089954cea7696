import { signal } from "@preact/signals";

import type { Session } from "../api";

/** What the viewer may do; nothing until the server has answered. */
export const session = signal<Session>({ may_act: false, may_see_content: true, may_retry: false });
