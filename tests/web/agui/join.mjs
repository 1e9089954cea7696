// Joins an activity with the official client, and prints what a front end would have: the kinds of the events and the
// activity message that the client has put together from them.
import { HttpAgent } from "@ag-ui/client";

const agent = new HttpAgent({ url: process.argv[2], threadId: "thread-1" });
const kinds = [];
let failure = null;
await agent
  .runAgent({ runId: "run-1" }, { onEvent: ({ event }) => void kinds.push(event.type) })
  .catch((error) => {
    failure = error.message;
  });
console.log(JSON.stringify({ kinds, failure, messages: agent.messages }));
