// Elements and words. Whatever comes from events is set as text, never as markup: there is no other way to set it here.

/** An element. `props` are attributes, but `on` (listeners by event); children are nodes, texts, or nothing. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  set(element, props);
  element.append(...kept(children));
  return element;
}

const SVG = 'http://www.w3.org/2000/svg';

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  set(element, props);
  element.append(...kept(children));
  return element;
}

function set(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value === true) {
      element.setAttribute(name, '');
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
}

const kept = (children) => children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);

/** Puts children in place of those that are there. */
export const fill = (element, ...children) => element.replaceChildren(...kept(children));

/** Sets a text only where it differs, so that nobody is read the same thing twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Tells those who do not see the page. */
export const announce = (text) => say(document.getElementById('said'), text);

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

/** `1,240` */
export const number = (n) => whole.format(n);

/** `12.4/s` */
export const rate = (n) => (n === null || n === undefined ? '–' : `${n >= 100 ? whole.format(n) : short.format(n)}/s`);

/** `1 letter`, `2 letters` */
export const count = (n, what) => `${number(n)} ${what}${n === 1 ? '' : 's'}`;

/** `4.2 s`, `3 min`, `2 h`, `5 d` */
export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s < 10 ? short.format(s) : Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 2 * 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

/** An instant for people, exact in its tooltip. */
export function when(ms) {
  if (!(ms > 0)) return h('span', {}, 'unknown');
  const at = new Date(ms);
  const ago = Date.now() - ms;
  const text = ago < 0 ? at.toISOString() : ago < 1000 ? 'now' : `${duration(ago)} ago`;
  return h('time', { datetime: at.toISOString(), title: at.toISOString() }, text);
}

/** An instant to the millisecond. */
export const exact = (ms) => h('time', { datetime: new Date(ms).toISOString() }, new Date(ms).toISOString().replace('T', ' '));

/** A sentence about something that did not work. */
export const trouble = (text, ...more) => h('div', { class: 'notice bad', role: 'alert' }, h('p', {}, text), ...more);

/** The class of an error as a mark. */
export const badge = (text, kind = '') => h('span', { class: `badge ${kind}` }, text);
