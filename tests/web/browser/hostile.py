"""Messages that try to be more than text."""

from itertools import islice, product

_PAYLOADS = [
    "<script>window.hacked = true</script>",
    "<img src=x onerror='window.hacked = true'>",
    "<svg/onload=window.hacked=true>",
    "javascript:window.hacked=true",
    "<a href='javascript:window.hacked=true'>click</a>",
    "<iframe srcdoc='<script>parent.hacked = true</script>'></iframe>",
    "<style>body { display: none }</style>",
    "<link rel=stylesheet href=//127.0.0.1:9/x.css>",
    "<meta http-equiv=refresh content='0;url=//127.0.0.1:9/'>",
    "<base href=//127.0.0.1:9/>",
    "<form action=//127.0.0.1:9/><button autofocus>",
    "</span></li></ol><h1>Injected</h1>",
    "<!--",
    "]]><script>window.hacked = true</script>",
    "{{constructor.constructor('window.hacked = true')()}}",
    "${window.hacked = true}",
    "';window.hacked=true;//",
    "&lt;script&gt;window.hacked = true&lt;/script&gt;",
    "&#60;img src=x onerror=window.hacked=true&#62;",
    "\u202ereversed and \u2066isolated",
    "\u05d0\u05d1\u05d2 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\x1b[31mred\x1b[0m \x1b]8;;http://127.0.0.1:9/\x07link\x1b]8;;\x07",
    "z\u0335\u0321\u035d" * 40,
    "W" * 500,
    "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}\u200d\N{BOY}",
    "line\nbreak\r\nand\ttab",
    "data: {}\n\nevent: end\ndata: {}\n\n",
    "\u2028separator\u2029",
    "null",
    "__proto__",
]
_FRAMES = ["{}", "Found {} in the page", "\u202e{}", '"{}"', "  {}  ", "{} </textarea>", "{}" * 2]


def messages(count: int) -> list[str]:
    """So many, each different."""
    return [
        f"{n}: {frame.replace('{}', payload)}"
        for n, (frame, payload) in islice(enumerate(product(_FRAMES, _PAYLOADS)), count)
    ]
