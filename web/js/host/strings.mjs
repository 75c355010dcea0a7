/** Texts of the widgets, in the language that ComfyUI is set to; English where a text has no translation. */

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";

const FALLBACK = "en";
let tables = {};
let asked = null;

/** Fetches the texts once; to be awaited before the first widget is made. */
export function loadStrings() {
  asked ??= api
    .fetchApi("/i18n")
    .then((answer) => answer.json())
    .then((languages) => {
      tables = languages;
    })
    .catch(() => {});
  return asked;
}

/** Text of a key such as "picker.search" with {names} filled in; the key itself where nothing is known. */
export function t(key, values = {}) {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? FALLBACK;
  const text = lookUp(locale, key) ?? lookUp(locale.split("-")[0], key) ?? lookUp(FALLBACK, key) ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? `${values[name]}` : whole));
}

function lookUp(locale, key) {
  let found = tables[locale]?.bestiary;
  for (const step of key.split(".")) found = found?.[step];
  return typeof found === "string" ? found : undefined;
}
