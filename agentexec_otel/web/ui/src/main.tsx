import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/list.css";
import "./styles/detail.css";

import { render } from "preact";

import { App } from "./app";

render(<App />, document.getElementById("app")!);
