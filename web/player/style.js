/**
 * The player's looks. A module, so that one import brings everything and nothing is fetched apart.
 * Invariant: sizes follow the element's own box (container queries), never the window.
 *
 * A host page may set: --fl-accent, --fl-surface, --fl-text, --fl-muted, --fl-bezel.
 */

export const css = `
:host {
  --accent: var(--fl-accent, #7aa2ff);
  --surface: var(--fl-surface, #12151c);
  --text: var(--fl-text, #eef1f7);
  --muted: var(--fl-muted, #8b93a5);
  --bezel: var(--fl-bezel, #05070a);
  --line: rgb(255 255 255 / 9%);
  --good: #3ddc97;
  --warn: #ffc56b;
  --bad: #ff6b7a;
  display: block;
  position: relative;
  min-width: 0;
  min-height: 240px;
  color: var(--text);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  container: player / size;
  -webkit-tap-highlight-color: transparent;
}
:host([hidden]) { display: none; }
* { box-sizing: border-box; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.player {
  /* What is beside the device: head above, bar to the right (or below), its frame around. */
  --frame: clamp(7px, 1.5cqmin, 12px);
  --beside-x: 98px;
  --beside-y: 44px;
  --ar: 0.5625;
  display: grid;
  grid-template: auto minmax(0, 1fr) / minmax(0, 1fr) auto minmax(58px, 1fr);
  grid-template-areas: "head head head" "left stage bar";
  gap: 12px 20px;
  height: 100%;
}
:host(:fullscreen) { background: #07090d; padding: 14px; }

/* Head: state on the left, figures on the right. */
.head { grid-area: head; display: flex; align-items: center; justify-content: space-between; gap: 12px; min-height: 32px; }
.pill {
  display: inline-flex; align-items: center; gap: 9px; min-width: 0;
  padding: 6px 13px 6px 11px; border-radius: 99px;
  background: rgb(255 255 255 / 5%); border: 1px solid var(--line);
  font-weight: 550; font-size: 13px; white-space: nowrap;
}
.dot { flex: none; width: 8px; height: 8px; border-radius: 50%; background: var(--muted); }
[data-tone="good"] .dot { background: var(--good); box-shadow: 0 0 0 3px rgb(61 220 151 / 18%); }
[data-tone="warn"] .dot { background: var(--warn); animation: pulse 1.2s ease-in-out infinite; }
[data-tone="bad"] .dot { background: var(--bad); box-shadow: 0 0 0 3px rgb(255 107 122 / 18%); }
.role { color: var(--muted); font-weight: 450; }
.role:empty { display: none; }
.role::before { content: "·"; margin-right: 7px; }
.brief { color: var(--muted); font-size: 13px; font-variant-numeric: tabular-nums; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }

/* The device as large as it fits, at the picture's own aspect. */
.device {
  grid-area: stage; place-self: center;
  position: relative;
  width: min(100cqw - var(--beside-x), (100cqh - var(--beside-y) - 2 * var(--frame)) * var(--ar) + 2 * var(--frame));
  padding: var(--frame);
  border-radius: calc(var(--frame) + clamp(16px, 4cqmin, 30px));
  background: linear-gradient(145deg, #2b303b, #0c0f14 32%, #07090c 68%, #232833);
  box-shadow: 0 0 0 1px rgb(255 255 255 / 7%), inset 0 0 0 1.5px rgb(255 255 255 / 6%),
    0 30px 80px -24px rgb(0 0 0 / 85%), 0 0 140px -50px color-mix(in srgb, var(--accent) 55%, transparent);
}
.screen {
  position: relative; overflow: hidden;
  aspect-ratio: var(--ar);
  border-radius: clamp(16px, 4cqmin, 30px);
  background: var(--bezel);
  isolation: isolate;
}
video {
  display: block; width: 100%; height: 100%; object-fit: contain; background: #000;
  touch-action: none; user-select: none; -webkit-user-select: none; -webkit-touch-callout: none;
  cursor: default;
}
/* Nearly transparent: a browser need not draw what nobody can see. */
video.next { position: absolute; inset: 0; opacity: .001; pointer-events: none; }
[data-control="yes"] video { cursor: pointer; }
.sink {
  position: absolute; inset: auto 0 0 auto; width: 1px; height: 1px; padding: 0; border: 0; opacity: 0;
  font-size: 16px; /* below that iOS zooms into the page on focus */
  resize: none; caret-color: transparent; pointer-events: none;
}
.device:has(.sink:focus-visible) { box-shadow: 0 0 0 1.5px color-mix(in srgb, var(--accent) 60%, transparent), 0 30px 80px -24px rgb(0 0 0 / 85%), 0 0 140px -50px color-mix(in srgb, var(--accent) 55%, transparent); }

/* Veil over the picture while there is none, or while it is old. */
.veil {
  position: absolute; inset: 0; display: grid; place-content: center; justify-items: center; gap: 18px;
  padding: 20px; text-align: center; color: var(--muted);
  background: radial-gradient(120% 80% at 50% 30%, #1a2030, #0a0d13 70%);
  transition: opacity .3s, visibility .3s;
}
[data-picture="old"] .veil { background: rgb(7 9 13 / 62%); backdrop-filter: blur(14px) saturate(.6); }
[data-picture="live"] .veil { opacity: 0; visibility: hidden; pointer-events: none; }
.spinner { width: 38px; height: 38px; border-radius: 50%; border: 3px solid rgb(255 255 255 / 10%); border-top-color: var(--accent); animation: spin .9s linear infinite; }
[data-state="idle"] .spinner, [data-state="closed"] .spinner { display: none; }
.veil p { margin: 0; max-width: 26ch; }

/* Card with the server's words. */
.card {
  grid-area: stage; place-self: center; position: relative; z-index: 1; width: min(340px, 100cqw - 28px);
  max-height: calc(100cqh - var(--beside-y)); overflow: auto; padding: 22px; border-radius: 20px; text-align: left;
  background: color-mix(in srgb, var(--surface) 94%, transparent); border: 1px solid var(--line);
  box-shadow: 0 24px 60px -18px rgb(0 0 0 / 80%);
}
.card[hidden] { display: none; }
.card .mark svg { width: 26px; height: 26px; color: var(--bad); }
.card h2 { margin: 10px 0 6px; font-size: 17px; line-height: 1.3; font-weight: 620; overflow-wrap: anywhere; }
.card p { margin: 0 0 12px; color: #b6bdcb; overflow-wrap: anywhere; }
.card p:empty { display: none; }
.card dl { display: grid; grid-template-columns: auto 1fr; gap: 3px 12px; margin: 0 0 14px; font-size: 12.5px; }
.card dl:empty { display: none; }
.card dt { color: var(--muted); }
.card dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12px; line-height: 1.6; }
.card .act { display: flex; align-items: center; gap: 12px; flex-wrap: wrap; }
.card .count { color: var(--muted); font-size: 13px; font-variant-numeric: tabular-nums; }
.primary {
  display: inline-flex; align-items: center; gap: 8px; padding: 9px 16px 9px 13px; border: 0; border-radius: 11px;
  background: var(--accent); color: #081022; font: inherit; font-weight: 620; cursor: pointer;
}
.primary:hover { filter: brightness(1.1); }
.primary svg { width: 17px; height: 17px; stroke-width: 2.2; }
.start { padding: 12px 20px 12px 15px; border-radius: 14px; }
.start[hidden] { display: none; }

/* Bar of buttons: beside the device, below it where the player is narrow. */
.bar {
  grid-area: bar; place-self: center start; display: flex; flex-direction: column; gap: 4px; padding: 7px; border-radius: 20px;
  background: rgb(255 255 255 / 4%); border: 1px solid var(--line);
  max-height: 100%; overflow: auto; scrollbar-width: none;
}
.bar::-webkit-scrollbar { display: none; }
.bar hr { flex: none; width: 22px; height: 1px; margin: 5px auto; border: 0; background: var(--line); }
.bar button {
  position: relative; flex: none; display: grid; place-items: center; width: 42px; height: 42px; border: 0; border-radius: 13px;
  background: none; color: #c9cfdb; cursor: pointer; touch-action: manipulation; transition: background .15s, color .15s, transform .1s;
}
.bar button svg { width: 22px; height: 22px; }
.bar button:hover { background: rgb(255 255 255 / 8%); color: #fff; }
.bar button:active:not(:disabled) { transform: scale(.92); background: rgb(255 255 255 / 14%); }
.bar button[aria-pressed="true"] { background: color-mix(in srgb, var(--accent) 20%, transparent); color: var(--accent); }
.bar button:disabled { color: #4b5261; cursor: not-allowed; background: none; }
.bar button:focus-visible { outline-offset: -2px; }
.nav, .extra { display: contents; }
.bar .more { display: none; }
@media not all and (any-pointer: coarse) { .bar .keyboard { display: none; } }
:host([controls="none"]) .bar, :host([controls="none"]) .head { display: none; }
:host([controls="none"]) .player { --beside-x: 0px; --beside-y: 0px; gap: 0; grid-template: "stage" minmax(0, 1fr) / minmax(0, 1fr); }

/* Statistics. */
.stats {
  position: absolute; z-index: 2; top: 44px; left: 0; width: 268px; max-width: 100%; max-height: calc(100% - 44px); overflow: auto; padding: 14px 16px;
  border-radius: 16px; background: rgb(13 16 23 / 84%); backdrop-filter: blur(18px); border: 1px solid var(--line);
  font-size: 12.5px; font-variant-numeric: tabular-nums; pointer-events: none; box-shadow: 0 20px 50px -20px #000;
}
.stats[hidden] { display: none; }
.stats .curves { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; margin-bottom: 12px; }
.stats figure { margin: 0; min-width: 0; }
.stats figcaption { color: var(--muted); font-size: 11.5px; }
.stats strong { display: block; font-size: 16px; font-weight: 600; white-space: nowrap; letter-spacing: -.01em; }
.stats svg { display: block; width: 100%; height: 30px; margin-top: 5px; }
.stats .line { fill: none; stroke: var(--accent); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.stats .area { fill: color-mix(in srgb, var(--accent) 16%, transparent); }
.stats dl { display: grid; grid-template-columns: 1fr auto; gap: 4px 12px; margin: 0; padding-top: 10px; border-top: 1px solid var(--line); }
.stats dt { color: var(--muted); }
.stats dd { margin: 0; text-align: right; white-space: nowrap; }

.toast {
  position: absolute; z-index: 3; left: 50%; bottom: 18px; translate: -50% 8px; max-width: calc(100% - 24px);
  padding: 9px 15px; border-radius: 12px; background: rgb(13 16 23 / 92%); border: 1px solid var(--line);
  font-size: 13px; opacity: 0; transition: opacity .2s, translate .2s; pointer-events: none; text-align: center;
}
.toast.shown { opacity: 1; translate: -50% 0; }

@container player (max-width: 640px) {
  .player { --beside-x: 0px; --beside-y: 108px; grid-template: auto minmax(0, 1fr) auto / minmax(0, 1fr); grid-template-areas: "head" "stage" "bar"; gap: 10px; }
  .bar { position: relative; flex-direction: row; place-self: end stretch; justify-content: space-around; padding: 5px; gap: 0; overflow: visible; }
  .bar hr { display: none; }
  .bar button { width: 52px; height: 44px; }
  .bar .more { display: grid; }
  .extra {
    position: absolute; z-index: 4; right: 0; bottom: calc(100% + 8px); display: grid; grid-template-columns: repeat(3, auto); gap: 4px; padding: 8px;
    border-radius: 18px; background: rgb(19 23 32 / 96%); border: 1px solid var(--line); box-shadow: 0 20px 50px -12px #000;
  }
  .bar:not(.open) .extra { display: none; }
}
@container player (max-height: 600px) and (min-width: 641px) {
  .player { --beside-x: 244px; --beside-y: 0px; grid-template: "head stage bar" minmax(0, 1fr) / minmax(108px, 1fr) auto minmax(96px, 1fr); }
  .head { flex-direction: column; justify-content: start; align-items: start; }
  .brief { white-space: normal; }
  .bar { display: grid; grid-template-columns: 1fr 1fr; }
  .bar hr { display: none; }
}
@keyframes spin { to { rotate: 1turn; } }
@keyframes pulse { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) {
  * { animation-duration: 3s !important; transition-duration: 0s !important; }
}
`;
