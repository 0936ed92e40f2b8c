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
  const pane = event => event.target.closest && event.target.closest('.itf-pane');
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
    send(explorer, next);
  }
  document.addEventListener('wheel', event => {
    const here = pane(event);
    if (!here) return;
    event.preventDefault();
    const explorer = explorerOf(here), now = view(explorer), box = here.getBoundingClientRect();
    const zoom = clamp(now.zoom * (event.deltaY < 0 ? 1.25 : .8), 1, 16);
    const [x, y] = [(event.clientX - box.left) / box.width - .5, (event.clientY - box.top) / box.height - .5];
    move(explorer, {zoom, across: now.across + x / now.zoom - x / zoom, down: now.down + y / now.zoom - y / zoom});
  }, {passive: false});
  let drag = null;
  document.addEventListener('pointerdown', event => {
    const here = pane(event);
    if (!here || event.button) return;
    const now = view(explorerOf(here)), box = here.getBoundingClientRect(), line = box.left + box.width * now.swipe / 100;
    const swipe = here.classList.contains('itf-stage') && (now.zoom <= 1 || Math.abs(event.clientX - line) < 24);
    drag = {here, swipe, now, box, x: event.clientX, y: event.clientY};
  });
  document.addEventListener('pointermove', event => {
    if (!drag) return;
    const {here, swipe, now, box, x, y} = drag, explorer = explorerOf(here);
    if (swipe) move(explorer, {swipe: 100 * (event.clientX - box.left) / box.width});
    else move(explorer, {across: now.across - (event.clientX - x) / box.width / now.zoom,
      down: now.down - (event.clientY - y) / box.height / now.zoom});
  });
  for (const name of ['pointerup', 'pointercancel']) document.addEventListener(name, () => { drag = null; });
  document.addEventListener('dragstart', event => { if (pane(event)) event.preventDefault(); });
  document.addEventListener('keydown', event => {
    const here = pane(event);
    if (!here || event.ctrlKey || event.metaKey || event.altKey) return;
    const explorer = explorerOf(here), now = view(explorer), step = .1 / now.zoom;
    const change = {'+': {zoom: now.zoom * 1.25}, '=': {zoom: now.zoom * 1.25}, '-': {zoom: now.zoom * .8}, '0': {zoom: 1},
      ArrowLeft: {across: now.across - step}, ArrowRight: {across: now.across + step},
      ArrowUp: {down: now.down - step}, ArrowDown: {down: now.down + step},
      ' ': {swipe: now.swipe < 50 ? 100 : 0}}[event.key];
    if (event.key === 'd') send(explorer, {again: 1});
    else if (!change) return;
    else move(explorer, change);
    event.preventDefault();
    event.stopPropagation();
  }, true);

  // The page says that it is there, until Python has heard it; and sets what ipywidgets cannot: panes for the keyboard, words for pictures.
  setInterval(() => {
    for (const here of document.querySelectorAll('.itf-pane:not([tabindex])')) {
      here.tabIndex = 0;
      here.setAttribute('role', 'group');
      here.setAttribute('aria-label', 'pictures: plus and minus zoom, arrows move, 0 shows the whole, space swipes, d draws again');
    }
    for (const image of document.querySelectorAll('.itf-explorer img:not([alt]), .itf-explorer img[alt=""]')) {
      const name = [...image.classList].find(name => name.startsWith('itf-'));
      if (name) image.alt = name.slice(4);
    }
    for (const explorer of document.querySelectorAll('.itf-explorer')) {
      const now = explorer.querySelector('.itf-view');
      if (now && now.dataset.heard !== '1' && explorer.querySelector('.itf-wire input')) send(explorer, {hello: 1});
    }
  }, 250);

  // A file that is too large is refused before it is sent. The button's own input is not in the page: it is caught when it is clicked.
  const click = HTMLInputElement.prototype.click;
  HTMLInputElement.prototype.click = function () {
    const explorer = document.activeElement && document.activeElement.closest('.itf-explorer') || document.querySelector('.itf-explorer');
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
    return click.call(this);
  };
  // An export is a link in the page; the first time it is seen it is clicked.
  new MutationObserver(() => {
    for (const link of document.querySelectorAll('.itf-download a:not([data-taken])')) {
      link.dataset.taken = 1;
      link.click();
    }
  }).observe(document.documentElement, {childList: true, subtree: true});
})();
