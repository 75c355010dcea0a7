/** Changing what an element shows without taking away what is being pressed. */

/** Element -> {pressed, next}: whether a press began in it, and the children that it gets after the release. */
const refilled = new WeakMap();

function watch(element) {
  const state = { pressed: false, next: null };
  const release = () => {
    for (const name of ["pointerup", "pointercancel"]) window.removeEventListener(name, release, true);
    // the click of this press comes first
    setTimeout(() => {
      state.pressed = false;
      if (state.next) element.replaceChildren(...state.next);
      state.next = null;
    });
  };
  const press = () => {
    state.pressed = true;
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, release, true);
  };
  element.addEventListener("pointerdown", press, true);
  refilled.set(element, state);
  return state;
}

/** Replaces the children of an element, while it is pressed only after the release: a click needs the button on which it began. */
export function refill(element, ...children) {
  const state = refilled.get(element) ?? watch(element);
  if (state.pressed) state.next = children;
  else element.replaceChildren(...children);
}
