/**
 * Keyboard events as Android key codes. Not text entry: what is no key of Android's becomes text.
 * Invariant: what `keyOf` does not name is left to the browser.
 */

/** Keys that mean the same on any layout, by `KeyboardEvent.code`. */
const BY_CODE = {
  ArrowUp: 19, ArrowDown: 20, ArrowLeft: 21, ArrowRight: 22,
  Enter: 66, NumpadEnter: 160, Backspace: 67, Delete: 112, Insert: 124,
  Home: 122, End: 123, PageUp: 92, PageDown: 93,
  Escape: 4, // Back, as a phone's user expects
  ContextMenu: 82,
  ShiftLeft: 59, ShiftRight: 60, ControlLeft: 113, ControlRight: 114, AltLeft: 57, AltRight: 58,
};

const META_SHIFT = 0x41;
const META_ALT = 0x12;
const META_CTRL = 0x3000;
const META_CAPS = 0x100000;
const META_NUM = 0x200000;

/** Android's meta state bits of a keyboard event. */
export function metaState(event) {
  const locked = (name) => event.getModifierState?.(name) ?? false;
  return (
    (event.shiftKey ? META_SHIFT : 0) |
    (event.altKey ? META_ALT : 0) |
    (event.ctrlKey || event.metaKey ? META_CTRL : 0) |
    (locked('CapsLock') ? META_CAPS : 0) |
    (locked('NumLock') ? META_NUM : 0)
  );
}

/** Android's code of a character that has a key on every layout: letters, digits, space. */
function codeOfCharacter(character) {
  if (/^[a-z]$/i.test(character)) return 29 + character.toLowerCase().charCodeAt(0) - 97;
  if (/^[0-9]$/.test(character)) return 7 + Number(character);
  return character === ' ' ? 62 : undefined;
}

/**
 * What a keydown means: `{ keycode, meta }` for a key, `{ text }` for a character without one, or
 * undefined for what stays with the browser: Tab (so that the keyboard can leave the player),
 * function keys, input methods and dead keys.
 */
export function keyOf(event) {
  if (event.isComposing || ['Process', 'Dead', 'Unidentified', 'Tab'].includes(event.key)) {
    return undefined;
  }
  const meta = metaState(event);
  const shortcut = event.ctrlKey || event.metaKey;
  if ([...event.key].length === 1) {
    // AltGr is Ctrl+Alt on some systems: then the character counts.
    const graph = event.getModifierState?.('AltGraph') ?? false;
    const keycode = codeOfCharacter(event.key);
    if (keycode !== undefined && !graph) {
      // The character's case decides: Caps Lock and Shift undo each other.
      const upper = event.key !== event.key.toLowerCase();
      const shifted = upper ? meta | META_SHIFT : meta & ~META_SHIFT;
      return { keycode, meta: shortcut ? meta : shifted & ~META_CAPS };
    }
    return shortcut && !graph ? undefined : { text: event.key };
  }
  const keycode = BY_CODE[event.code] ?? BY_CODE[event.key];
  return keycode === undefined ? undefined : { keycode, meta };
}
