(() => {
  if (window.interflowExplorer) return;
  window.interflowExplorer = true;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  let count = 0, waiting = null;

  // What the pointer and the keys do goes to Python as text, in a hidden input: Python owns the view.
  function send(explorer, words) {
    waiting = {explorer, words: {...(waiting && waiting.explorer === explorer ? waiting.words : {}), ...words}};
    count++;      // the same words twice are still two
    if (!send.asked) {
      send.asked = requestAnimationFrame(() => {
        const {explorer, words} = waiting, box = explorer.querySelector('.itf-wire input');
        waiting = send.asked = null;
        box.value = JSON.stringify({...words, count});
        box.dispatchEvent(new Event('input', {bubbles: true}));
      });
    }
  }
  const closest = (event, selector) => event.target.closest && event.target.closest(selector);
  const pane = event => closest(event, '.itf-explorer .itf-pane');
  const explorerOf = element => element.closest('.itf-explorer');
  function view(explorer) {
    const data = explorer.querySelector('.itf-view').dataset;
    return {zoom: +data.zoom, across: +data.across, down: +data.down, swipe: +data.swipe};
  }
  function move(explorer, change) {
    const data = explorer.querySelector('.itf-view').dataset, next = {...view(explorer), ...change};
    next.zoom = clamp(next.zoom, 1, 16);
    for (const name of ['across', 'down']) next[name] = clamp(next[name], .5 / next.zoom, 1 - .5 / next.zoom);
    next.swipe = clamp(next.swipe, 0, 100);
    Object.assign(data, next);
    explorer.classList.toggle('itf-zoomed', next.zoom > 1);
    send(explorer, next);
  }
  // Zoom so that what lies under a point of the pane stays there.
  function zoomAt(explorer, box, point, now, zoom) {
    zoom = clamp(zoom, 1, 16);
    const x = (point.clientX - box.left) / box.width - .5, y = (point.clientY - box.top) / box.height - .5;
    move(explorer, {zoom, across: now.across + x / now.zoom - x / zoom, down: now.down + y / now.zoom - y / zoom});
  }
  document.addEventListener('wheel', event => {
    const here = pane(event);
    if (!here) return;
    event.preventDefault();
    const explorer = explorerOf(here), now = view(explorer);
    zoomAt(explorer, here.getBoundingClientRect(), event, now, now.zoom * (event.deltaY < 0 ? 1.25 : .8));
  }, {passive: false});

  // The part: its frame on the whole photograph follows at once, Python draws.
  function part(explorer, across, down) {
    const frame = explorer.querySelector('.itf-part'), data = frame.dataset;
    [data.across, data.down] = [clamp(across, 0, 1), clamp(down, 0, 1)];
    frame.style.left = `${100 * data.across * (1 - data.wide)}%`;
    frame.style.top = `${100 * data.down * (1 - data.high)}%`;
    send(explorer, {part_across: +data.across, part_down: +data.down});
  }
  function centre(here, event, grip) {      // the part's middle, less where it was gripped
    const explorer = explorerOf(here), box = here.getBoundingClientRect(), data = explorer.querySelector('.itf-part').dataset;
    const x = (event.clientX - box.left) / box.width - grip.x, y = (event.clientY - box.top) / box.height - grip.y;
    const share = (middle, side) => side < 1 ? (middle - side / 2) / (1 - side) : .5;
    part(explorer, share(x, +data.wide), share(y, +data.high));
  }

  let drag = null;
  const fingers = new Map();
  function chosen(event, whole) {      // a press on the whole photograph
    const frame = whole.querySelector('.itf-part'), grip = {x: 0, y: 0};
    if (!frame) return;
    if (event.target === frame) {
      const box = whole.getBoundingClientRect(), mine = frame.getBoundingClientRect();
      grip.x = (event.clientX - mine.left - mine.width / 2) / box.width;
      grip.y = (event.clientY - mine.top - mine.height / 2) / box.height;
    }
    drag = {whole, grip, touch: event.pointerType === 'touch' && event.target !== frame};
    if (event.target !== frame && !drag.touch) centre(whole, event, grip);
  }
  document.addEventListener('pointerdown', event => {
    const whole = closest(event, '.itf-whole'), here = pane(event);
    if (event.button || !(whole || here)) return;
    if (whole) return chosen(event, whole);
    fingers.set(event.pointerId, event);
    const explorer = explorerOf(here), now = view(explorer), box = here.getBoundingClientRect(), line = box.left + box.width * now.swipe / 100;
    const stage = here.classList.contains('itf-stage'), swipe = stage && (now.zoom <= 1 || Math.abs(event.clientX - line) < 24);
    const frame = explorer.querySelector('.itf-part'), held = frame && {...frame.dataset};
    drag = {here, swipe, now, box, held: !stage && now.zoom <= 1 && event.pointerType !== 'touch' && held, x: event.clientX, y: event.clientY};
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()];
      drag.pinch = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
    }
  });
  document.addEventListener('pointermove', event => {
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
    if (!drag) return;
    if (drag.whole) {
      if (!drag.touch) centre(drag.whole, event, drag.grip);
      return;
    }
    const {here, swipe, now, box, held, x, y, pinch} = drag, explorer = explorerOf(here);
    if (pinch && fingers.size === 2) {
      const [a, b] = [...fingers.values()], far = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      const middle = {clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2};
      zoomAt(explorer, box, middle, now, now.zoom * far / pinch);
    } else if (swipe) move(explorer, {swipe: 100 * (event.clientX - box.left) / box.width});
    else if (held) part(explorer, held.across - (event.clientX - x) / box.width * held.wide / Math.max(1 - held.wide, .01),
      held.down - (event.clientY - y) / box.height * held.high / Math.max(1 - held.high, .01));
    else move(explorer, {across: now.across - (event.clientX - x) / box.width / now.zoom,
      down: now.down - (event.clientY - y) / box.height / now.zoom});
  });
  for (const name of ['pointerup', 'pointercancel']) document.addEventListener(name, event => {
    if (name === 'pointerup' && drag && drag.whole && drag.touch) centre(drag.whole, event, drag.grip);
    fingers.delete(event.pointerId);
    drag = null;
  });
  document.addEventListener('dragstart', event => { if (pane(event) || closest(event, '.itf-whole')) event.preventDefault(); });
  document.addEventListener('keydown', event => {
    const here = pane(event), whole = closest(event, '.itf-explorer .itf-whole');
    if (!(here || whole) || event.ctrlKey || event.metaKey || event.altKey) return;
    const explorer = explorerOf(here || whole), now = view(explorer), step = .1 / now.zoom;
    const frame = explorer.querySelector('.itf-part'), arrow = {ArrowLeft: [-.05, 0], ArrowRight: [.05, 0], ArrowUp: [0, -.05], ArrowDown: [0, .05]}[event.key];
    if (arrow && frame && (whole || now.zoom <= 1)) part(explorer, +frame.dataset.across + arrow[0], +frame.dataset.down + arrow[1]);
    else if (event.key === 'd') send(explorer, {again: 1});
    else {
      const change = {'+': {zoom: now.zoom * 1.25}, '=': {zoom: now.zoom * 1.25}, '-': {zoom: now.zoom * .8}, '0': {zoom: 1},
        ArrowLeft: {across: now.across - step}, ArrowRight: {across: now.across + step},
        ArrowUp: {down: now.down - step}, ArrowDown: {down: now.down + step},
        ' ': {swipe: now.swipe < 50 ? 100 : 0}}[event.key];
      if (!change) return;
      move(explorer, change);
    }
    event.preventDefault();
    event.stopPropagation();
  }, true);

  // Examples, and the command for the clipboard.
  document.addEventListener('click', event => {
    const example = closest(event, '.itf-explorer .itf-example'), copy = closest(event, '.itf-copy-button');
    if (example) send(explorerOf(example), {example: example.dataset.example});
    if (copy) {
      const text = explorerOf(copy).querySelector('.itf-command textarea'), said = copy.textContent;
      const tell = words => { copy.textContent = words; setTimeout(() => { copy.textContent = said; }, 1500); };
      text.select();
      const copied = navigator.clipboard ? navigator.clipboard.writeText(text.value) : Promise.reject();
      copied.then(() => tell('Copied'), () => tell(document.execCommand('copy') ? 'Copied' : 'Press Ctrl+C'));
    }
  });

  // A file comes by the button, dropped, or pasted. One that is too large is refused before it is sent.
  // The button's own input is not in the page: it is caught when it is clicked.
  const click = HTMLInputElement.prototype.click;
  let given = null;
  HTMLInputElement.prototype.click = function () {
    const active = document.activeElement;
    const explorer = given && given.explorer || active && active.closest('.itf-explorer') || document.querySelector('.itf-explorer');
    if (this.type === 'file' && explorer && !this.interflow) {
      this.interflow = true;
      this.addEventListener('change', event => {
        const file = this.files[0];
        if (file && file.size > MAX_BYTES) {
          event.stopImmediatePropagation();
          send(explorer, {large: [file.name, file.size]});
        }
      }, true);
    }
    if (this.type !== 'file' || !given) return click.call(this);
    const files = new DataTransfer();
    files.items.add(given.file);
    given = null;
    this.files = files.files;
    this.dispatchEvent(new Event('change', {bubbles: true}));
  };
  function take(explorer, files) {
    const file = [...files].find(file => file.type.startsWith('image/')) || files[0];
    if (!explorer || !file) return false;
    given = {explorer, file};
    explorer.querySelector('button.itf-upload').click();
    given = null;
    return true;
  }
  const near = event => closest(event, '.itf-explorer') || (document.body.dataset.voila && document.querySelector('.itf-explorer'));
  document.addEventListener('dragover', event => { if (near(event) && event.dataTransfer.types.includes('Files')) event.preventDefault(); });
  document.addEventListener('drop', event => { if (event.dataTransfer.files.length && take(near(event), event.dataTransfer.files)) event.preventDefault(); });
  document.addEventListener('paste', event => {
    const files = event.clipboardData && event.clipboardData.files || [];
    if (files.length && take(near(event), files)) event.preventDefault();
  });

  // The page says that it is there, until Python has heard it; and sets what ipywidgets cannot: panes for the keyboard, words for
  // pictures and sliders, a tooltip for the whole of a control.
  const WORDS = {generated: 'the generated picture', before: 'the picture left of the line', true: 'the true image', hr: 'the HR image',
    difference: 'generated minus true', sr: 'the SR network\'s result', photo: 'the whole photograph', spectrum: 'plot: noise spectrum',
    brightness: 'plot: noise by brightness', map: 'plot: map of latents', posterior: 'plot: posterior of the factor'};
  function label(here, text) {
    here.tabIndex = 0;
    here.setAttribute('role', 'group');
    here.setAttribute('aria-label', text);
  }
  setInterval(() => {
    for (const here of document.querySelectorAll('.itf-pane:not([tabindex])'))
      label(here, 'pictures: plus and minus zoom, arrows move, 0 shows the whole, space swipes, d draws again');
    for (const here of document.querySelectorAll('.itf-whole:not([tabindex])')) label(here, 'the part of the photograph: arrows move it');
    for (const image of document.querySelectorAll('.itf-explorer .widget-image:not([data-named])')) {
      const name = [...image.classList].map(name => name.slice(4)).find(name => WORDS[name]);
      image.dataset.named = image.alt = WORDS[name] || '';
    }
    for (const sentence of document.querySelectorAll('.itf-side dd[data-of]')) {
      const control = sentence.closest('.itf-side').querySelector(`.itf-${sentence.dataset.of}`), handle = control && control.querySelector('.noUi-handle, textarea');
      if (control && control.title !== sentence.textContent) control.title = sentence.textContent;
      if (handle && !handle.ariaLabel) handle.ariaLabel = sentence.previousElementSibling.textContent;
    }
    for (const explorer of document.querySelectorAll('.itf-explorer')) {
      const now = explorer.querySelector('.itf-view');
      if (!(now && now.dataset.heard === '1') && explorer.querySelector('.itf-wire input')) send(explorer, {hello: 1});
    }
  }, 250);

  // An export is a link in the page; the first time it is seen it is clicked.
  new MutationObserver(() => {
    for (const link of document.querySelectorAll('.itf-download a:not([data-taken])')) {
      link.dataset.taken = 1;
      link.click();
    }
  }).observe(document.documentElement, {childList: true, subtree: true});
})();
