// The ladder of each pipeline, stage by stage, as it moves.

import { announce, count, duration, fill, h, number, rate, say, svg, trouble } from './dom.js';
import { of, post } from './server.js';
import { name, rememberName } from './letters.js';

/** Looks that the little curve shows: two minutes. */
const CURVE = 60;
/** Overdue for longer is worth a look, and for longer than that a worry. */
const LATE_MS = 5000;
const VERY_LATE_MS = 60000;

/** What an instance says that pauses its stage. */
const REASONS = {
  breaker: 'paused: the handler’s target is down',
  brake: 'paused: too many dead letters',
  store: 'paused: Redis does not answer',
  halted: 'a partition is halted: going on would lose an event',
};

/** Rates seen so far, by pipeline and stage; kept while the tab lives. */
const curves = new Map();

/** Why nothing is to be seen of any stage, where that is so. */
export function away(look) {
  const stages = look.pipelines.flatMap((pipeline) => pipeline.stages);
  return look.error ?? (stages.length && stages.every((stage) => stage.error) ? stages[0].error : null);
}

export function overview({ about, look, listeners }) {
  const ladders = about.pipelines.map((pipeline) => new Ladder(pipeline));
  const error = h('div', {});
  let shown = null;
  const show = (next) => {
    const why = away(next);
    if (why !== shown) fill(error, why ? trouble(`No stage can be seen, so what stands here may be old: ${why}`) : null);
    shown = why;
    if (why) return;
    for (const ladder of ladders) ladder.show(next.pipelines.find((p) => p.pipeline === ladder.name));
  };
  if (look) show(look);
  listeners.add(show);
  return { title: 'Overview', nodes: [h('h1', {}, 'Overview'), error, ladders.map((ladder) => ladder.node)] };
}

class Ladder {
  constructor(pipeline) {
    this.name = pipeline.name;
    const last = pipeline.stages.length - 1;
    this.stages = pipeline.stages.map((stage, i) => (i === last ? new Dlq(pipeline.name, stage) : new Stage(pipeline.name, stage)));
    this.node = h('section', { class: 'ladder', 'aria-label': `Pipeline ${pipeline.name}` },
      h('h2', {}, pipeline.name, h('small', {}, ` ${pipeline.topic} · group ${pipeline.group}`)),
      h('ol', { class: 'stages' }, this.stages.map((stage) => stage.node)));
  }

  show(pipeline) {
    pipeline?.stages.forEach((stage, i) => this.stages[i]?.show(stage));
  }
}

/** One figure with its word. */
const figure = (word, value) => h('div', {}, h('dt', {}, word), value);

class Stage {
  constructor(pipeline, { stage, delay_ms }) {
    this.pipeline = pipeline;
    this.stage = stage;
    this.id = `${pipeline}-${stage}`;
    this.isFirst = delay_ms === null;
    this.switch = h('button', { class: 'small', on: { click: () => this.toggle() } }, 'Pause …');
    this.form = h('div', { on: { keydown: (event) => event.key === 'Escape' && this.close() } });
    this.main = h('strong', { class: 'big' }, '–');
    this.overdue = h('dd', {}, '–');
    this.done = h('dd', { class: 'rate' }, '–');
    this.members = h('dd', {}, '–');
    this.notes = h('div', { class: 'notes' });
    this.curve = svg('polyline', { points: '' });
    this.node = h('li', { class: 'stage', 'data-stage': stage },
      h('h3', {}, stage, delay_ms === null ? null : h('small', {}, ` after ${duration(delay_ms)}`)),
      h('p', { class: 'figure' }, this.main, h('span', {}, this.isFirst ? ' to do' : ' waiting')),
      svg('svg', { class: 'curve', viewBox: `0 0 ${CURVE - 1} 20`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, this.curve),
      h('dl', {}, this.isFirst ? null : figure('overdue', this.overdue), figure('done', this.done), figure('instances', this.members)),
      this.notes, this.form, h('p', { class: 'actions' }, this.switch));
  }

  show(stage) {
    if (stage.error) {
      this.mark('bad', [stage.error]);
      return;
    }
    const about = stage.estimated ? '~' : '';
    const late = stage.overdue > 0 ? stage.oldest_overdue_ms : 0;
    say(this.main, this.isFirst ? number(stage.lag) : about + number(stage.waiting));
    this.paused = Boolean(stage.paused);
    this.label();
    say(this.overdue, stage.overdue > 0 ? `${about}${number(stage.overdue)}` : '0');
    say(this.done, rate(stage.done_per_second));
    say(this.members, number(stage.members));
    this.draw(stage.done_per_second ?? 0);
    const notes = [];
    let kind = '';
    if (stage.paused) {
      kind = 'warn';
      notes.push(`paused by ${stage.paused.by}${stage.paused.reason ? `: ${stage.paused.reason}` : ''}`);
    }
    for (const { instance, reason } of stage.pauses ?? []) {
      kind = 'warn';
      notes.push(`${REASONS[reason] ?? reason} (${instance})`);
    }
    if (late > LATE_MS) {
      kind = late > VERY_LATE_MS ? 'bad' : 'warn';
      notes.push(`oldest overdue for ${duration(late)}`);
    }
    if (stage.lag > 0 && stage.members === 0) {
      kind = 'bad';
      notes.push('nobody runs this stage');
    }
    if (stage.retention_alarm) {
      kind = 'bad';
      notes.push('its oldest events are deleted unhandled soon');
    }
    this.mark(kind, notes);
  }

  /** Says on the switch what it does now. */
  label() {
    const word = this.paused ? 'Resume' : this.form.childElementCount ? 'Cancel' : 'Pause …';
    say(this.switch, word);
    this.switch.setAttribute('aria-label', `${word} ${this.stage}`);
  }

  close() {
    fill(this.form);
    this.label();
    this.switch.focus();
  }

  toggle() {
    if (this.paused) return this.order(false, '');
    if (this.form.childElementCount) return this.close();
    const id = `reason-${this.id}`;
    const reason = h('input', { id, maxlength: 200, placeholder: 'why, for the others' });
    const who = h('input', { id: `${id}-who`, maxlength: 60, autocomplete: 'name', value: name() });
    fill(this.form, h('form', { class: 'inline', on: { submit: (event) => {
      event.preventDefault();
      rememberName(who.value);
      this.order(true, reason.value);
    } } }, h('label', { for: id }, `Pause ${this.stage} in every instance`), reason,
    h('label', { for: who.id }, 'Your name'), who, h('button', { class: 'primary' }, 'Pause')));
    this.label();
    reason.focus();
  }

  async order(paused, reason) {
    this.switch.disabled = true;
    try {
      await post(of(this.pipeline, 'stages', this.stage), { paused, reason, who: name() });
      fill(this.form);
      announce(`${this.stage} ${paused ? 'is paused' : 'goes on'}; its instances follow within 2 seconds`);
    } catch (error) {
      fill(this.form, trouble(error.message));
    }
    this.switch.disabled = false;
    this.label();
    this.switch.focus();
  }

  mark(kind, notes) {
    this.node.className = `stage ${kind}`;
    const text = notes.join('\n');
    if (this.notes.dataset.text === text) return;
    this.notes.dataset.text = text;
    fill(this.notes, notes.map((note) => h('p', {}, note)));
  }

  draw(value) {
    const seen = curves.get(this.id) ?? [];
    seen.push(value);
    if (seen.length > CURVE) seen.shift();
    curves.set(this.id, seen);
    const top = Math.max(1, ...seen);
    const point = (v, i) => `${CURVE - seen.length + i},${(19 - (v / top) * 18).toFixed(1)}`;
    this.curve.setAttribute('points', seen.map(point).join(' '));
  }
}

class Dlq {
  constructor(pipeline, { stage }) {
    this.open = h('strong', { class: 'big' }, '–');
    this.come = h('dd', { class: 'rate' }, '–');
    this.redriven = h('dd', {}, '–');
    this.discarded = h('dd', {}, '–');
    this.notes = h('div', { class: 'notes' });
    this.node = h('li', { class: 'stage last', 'data-stage': stage },
      h('h3', {}, h('a', { href: `#/dlq/${encodeURIComponent(pipeline)}` }, 'DLQ')),
      h('p', { class: 'figure' }, this.open, h('span', {}, ' open')),
      h('dl', {}, figure('arriving', this.come), figure('redriven', this.redriven), figure('discarded', this.discarded)),
      this.notes);
  }

  show(stage) {
    const { letters } = stage;
    const error = stage.error ?? letters?.error;
    fill(this.notes, error ? h('p', {}, error) : null);
    this.node.className = `stage last ${error ? 'bad' : ''}`;
    if (error) return;
    say(this.open, number(letters.open));
    say(this.come, rate(stage.come_per_second));
    say(this.redriven, number(letters.redriven));
    say(this.discarded, number(letters.discarded));
  }
}
