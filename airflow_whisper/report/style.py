"""The style of report pages."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--page:#f7f8fa;--card:#fff;--ink:#16202c;--soft:#5a6675;--line:#e2e6eb;
--bar:#3b6fd4;--good:#17723f;--bad:#b3261e;--bad-soft:#fdecea;--good-soft:#e8f5ed;--chip:#eef1f5}
@media (prefers-color-scheme:dark){:root{--page:#10151c;--card:#18202a;--ink:#e6ebf2;--soft:#9aa7b6;
--line:#2a3542;--bar:#7aa5f7;--good:#6fd398;--bad:#ff8a80;--bad-soft:#3a1d1c;--good-soft:#17301f;--chip:#243040}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 56px}
.eyebrow{margin:0;color:var(--soft);font-size:13px;font-weight:600;letter-spacing:.02em}
h1{margin:2px 0 14px;font-size:28px;line-height:1.2;font-weight:680;letter-spacing:-.015em;
overflow-wrap:anywhere;display:flex;flex-wrap:wrap;gap:0 .4em}
h1 span{color:var(--soft);font-weight:500}
h2{margin:0 0 14px;font-size:17px;font-weight:650;letter-spacing:-.005em}
h2 small,figcaption{color:var(--soft);font-size:13px;font-weight:400}
h2 small{margin-left:.5em}
.verdict{margin:0;padding:10px 14px;border-radius:8px;overflow-wrap:anywhere}
.verdict b{margin-right:.6em}
.ok,.no{white-space:nowrap}
.passed{background:var(--good-soft)}.passed b,.ok{color:var(--good)}
.failed{background:var(--bad-soft)}.failed b,.no{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1px;margin:20px 0 36px;
background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.tiles div{box-shadow:0 0 0 1px var(--line);padding:14px 16px}
.tiles dt{color:var(--soft);font-size:13px}
.tiles dd{margin:0;font-size:24px;font-weight:650;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.tiles p{margin:0;color:var(--soft);font-size:12.5px;min-height:1.5em}
section{margin:0 0 36px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr));gap:16px}
figure{margin:0;padding:14px 16px 12px;background:var(--card);border:1px solid var(--line);border-radius:10px}
figcaption{margin-bottom:10px}
figcaption b{display:block;color:var(--ink);font-size:14.5px;font-weight:620}
svg{display:block;width:100%;height:auto}
rect{fill:var(--bar)}.axis{stroke:var(--line);stroke-width:1.5}
.tick,.peak{fill:var(--soft);font-size:11px}.peak{text-anchor:middle;fill:var(--ink);font-weight:600}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}
.wide{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow-x:auto}
.wide table{min-width:640px}
.wide th,.wide td{padding:9px 14px;text-align:left;vertical-align:top;
border-top:1px solid var(--line)}
.wide thead th{border-top:0;color:var(--soft);font-size:12.5px;font-weight:500;white-space:nowrap}
.wide td{font-size:14px;overflow-wrap:anywhere}.wide td:first-child{min-width:130px}
.bad td{background:var(--bad-soft)}
.num{text-align:right!important;white-space:nowrap}
td ul{margin:6px 0 0;padding:0;list-style:none;color:var(--soft);font-size:13px}
td li{padding:1px 0}
q{display:block;margin-top:3px;color:var(--soft);font-size:13.5px;quotes:none}
td i{display:inline-block;margin:0 4px 4px 0;padding:1px 7px;border-radius:5px;background:var(--chip);
font-style:normal;font-size:12.5px;white-space:nowrap}
.uri{color:inherit;text-decoration-color:var(--line);text-underline-offset:3px;user-select:all;
font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
a.uri:hover{text-decoration-color:currentColor}
a:focus-visible{outline:2px solid var(--bar);outline-offset:2px}
.bars th{padding:3px 12px 3px 0;text-align:left;font-weight:400;font-size:13.5px;white-space:nowrap}
.bars td{padding:3px 0}.bars td:nth-child(2){width:99%}
.bars td:last-child{padding-left:12px;text-align:right;font-size:13.5px}
.bars svg{height:9px;min-width:60px}
.none{margin:0;color:var(--soft);font-size:14px}
footer{padding-top:18px;border-top:1px solid var(--line);color:var(--soft);font-size:13px}
footer p{margin:0 0 10px}
footer dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 16px;margin:0}
footer dd{margin:0;overflow-wrap:anywhere}
@media print{body{background:none}figure,.tiles,tr{break-inside:avoid}}
"""
"""CSS, light and dark as the reader's system asks for."""
