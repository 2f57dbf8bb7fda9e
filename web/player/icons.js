/**
 * Icons as inline SVG: 24 x 24, stroked with the current colour. Invariant: trusted markup only,
 * written here; nothing from outside is ever put into it.
 */

const svg = (body) =>
  `<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.75" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true" focusable="false">${body}</svg>`;

export const icons = {
  back: svg('<path d="M17 5 6.5 12 17 19Z"/>'),
  home: svg('<circle cx="12" cy="12" r="7"/>'),
  recents: svg('<rect x="6" y="6" width="12" height="12" rx="2.5"/>'),
  power: svg('<path d="M12 4v7"/><path d="M7.2 7a7 7 0 1 0 9.6 0"/>'),
  volumeUp: svg('<path d="M4 10v4h3l4 4V6l-4 4Z"/><path d="M16 9v6M13 12h6"/>'),
  volumeDown: svg('<path d="M4 10v4h3l4 4V6l-4 4Z"/><path d="M14 12h6"/>'),
  rotate: svg('<rect x="8" y="3.5" width="8" height="12" rx="2"/><path d="M5 13.5v2a5 5 0 0 0 5 5h5"/><path d="m12.5 18 2.5 2.5-2.5 2.5"/>'),
  keyboard: svg('<rect x="3" y="6" width="18" height="12" rx="2.5"/><path d="M7 10h.01M10.3 10h.01M13.7 10h.01M17 10h.01M7.5 14h9"/>'),
  stats: svg('<path d="M5 19V12M10 19V5M15 19v-9M20 19v-5"/>'),
  fullscreen: svg('<path d="M9 4H5.5A1.5 1.5 0 0 0 4 5.5V9M15 4h3.5A1.5 1.5 0 0 1 20 5.5V9M9 20H5.5A1.5 1.5 0 0 1 4 18.5V15M15 20h3.5a1.5 1.5 0 0 0 1.5-1.5V15"/>'),
  fullscreenExit: svg('<path d="M4 9h3.5A1.5 1.5 0 0 0 9 7.5V4M20 9h-3.5A1.5 1.5 0 0 1 15 7.5V4M4 15h3.5A1.5 1.5 0 0 1 9 16.5V20M20 15h-3.5a1.5 1.5 0 0 0-1.5 1.5V20"/>'),
  warning: svg('<path d="M12 8.5v4.5M12 16.5h.01"/><path d="M10.4 4.3 3.3 17a1.8 1.8 0 0 0 1.6 2.7h14.2a1.8 1.8 0 0 0 1.6-2.7L13.6 4.3a1.8 1.8 0 0 0-3.2 0Z"/>'),
  retry: svg('<path d="M19.5 12a7.5 7.5 0 1 1-2.2-5.3L20 9.4"/><path d="M20 4.5v4.9h-4.9"/>'),
  more: svg('<path d="M6 12h.01M12 12h.01M18 12h.01" stroke-width="3"/>'),
  play: svg('<path d="M8 5.5v13l10.5-6.5Z"/>'),
};
