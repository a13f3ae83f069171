"""Names that try to get out of where they are shown or stored; each would set ``window.hit`` if it ran."""

from __future__ import annotations

NAMES = [
    "<script>window.hit=1</script>", "</script><script>window.hit=1</script>", "</style><script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>", "\"><img src=x onerror=window.hit=1>", "'><svg onload=window.hit=1>",
    "<svg/onload=window.hit=1>", "<iframe srcdoc='<script>parent.hit=1</script>'>", "<!--<script>window.hit=1//-->",
    "]]><script>window.hit=1</script>", "</title><script>window.hit=1</script>", "</pre></details><script>window.hit=1</script>",
    "\" onmouseover=\"window.hit=1", "' onfocus='window.hit=1' autofocus='", "javascript:window.hit=1",
    "data:text/html,<script>window.hit=1</script>", "<a href=javascript:window.hit=1>x</a>", "<body onload=window.hit=1>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>", "<link rel=stylesheet href=http://127.0.0.1:9/>",
    "<base href=http://127.0.0.1:9/>", "<form action=http://127.0.0.1:9/><input name=q></form>",
    "<object data=http://127.0.0.1:9/>", "<style>*{background:url(http://127.0.0.1:9/)}</style>", "<plaintext>", "<textarea>",
    "{{ 7*7 }}", "{% raw %}", "{{ metrics.__class__.__mro__ }}", "${window.hit=1}", "\tcmd|' /C calc'!A0", "\\u003cscript\\u003e",
    "&lt;script&gt;window.hit=1&lt;/script&gt;", "$x^{2}$ \\frac{1}{2} $", "../../../../tmp/escaped", "..\\..\\escaped",
    "/etc/passwd", "=HYPERLINK(\"http://127.0.0.1:9/\")", "file:///etc/passwd", "C:\\Windows\\system32", "a\0b",
    "line\nbreak\r\nSet-Cookie: hit=1",
    "\u202eevil\u202c", "\u2066isolated\u2069 \u200f right", "\ufeff\u200b\u200d", "\ud7ff\U0010ffff\x1b[31m", "x" * 300,
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627", "__proto__", "constructor",
]  # fmt: skip
assert len(NAMES) == len(set(NAMES)) == 50
