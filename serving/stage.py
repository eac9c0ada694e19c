"""The look of the web page, and its 3D view: styles, markup and the code that joins them to Gradio.

The view is a `gradio.HTML` whose value is JSON: where the GLB is, its title and key; `Item`s become that in
`page`. Titles hold what visitors typed and are only ever set as text.
"""

from shapeloom.viewer import CODE, library

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container main { max-width: none !important; }
#title h1 { margin: 0; font-size: 24px; } #title p { margin: 2px 0 0; opacity: .7; }
#turned img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
#view, #view > * { padding: 0 !important; margin: 0 !important; }
.stage { position: relative; height: min(58vh, 520px); min-height: 300px; border-radius: 12px;
  overflow: hidden; border: 1px solid var(--border-color-primary);
  background: linear-gradient(#f6f8fb, #e6eaf1); }
.stage .canvas { position: absolute; inset: 0; touch-action: none; } .stage canvas { display: block; }
.stage .note { position: absolute; left: 14px; right: 14px; bottom: 10px; margin: 0; font-size: 13px;
  color: #475467; pointer-events: none; overflow-wrap: anywhere; }
.stage .tools { position: absolute; top: 10px; right: 10px; display: flex; gap: 6px; }
.stage .tools button { font: inherit; font-size: 13px; padding: 6px 12px; border-radius: 8px; cursor: pointer;
  border: 1px solid #d0d5dd; background: #fffc; color: #475467; }
.stage .tools button[aria-pressed=true] { background: #1d4ed8; border-color: #1d4ed8; color: #fff; }
.stage[data-state=empty] .tools { display: none; }
#history, #history .grid-wrap { min-height: 0 !important; } #history .grid-wrap { padding-top: 26px; }
#history .grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important; }
#pictures { flex-wrap: wrap; gap: 8px; } #pictures > * { flex: 1 1 40%; }
#seen p { margin: 2px 0; font-size: 13px; } #seen div { display: flex; gap: 8px; flex-wrap: wrap; }
#seen img { width: 96px; height: 96px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
#downloads { gap: 8px; flex-wrap: wrap; } #downloads button { min-width: 64px; flex: 0 1 auto; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; } .stage { height: 74vw; }
}
"""

STAGE = """
<div class="stage" data-state="empty">
  <div class="canvas"></div>
  <div class="tools">
    <button type="button" data-look="texture" aria-pressed="true">Texture</button>
    <button type="button" data-look="wireframe" aria-pressed="false">Wireframe</button>
    <button type="button" data-look="turning" aria-pressed="true">Turn</button>
  </div>
  <p class="note">What you make appears here: drag to turn it, scroll or pinch to zoom.</p>
</div>
"""

STAGE_CODE = """
const stage = element.querySelector('.stage'), note = element.querySelector('.note');
const buttons = [...element.querySelectorAll('[data-look]')];
const press = (look, on) => {
  viewer.set(look, on);
  buttons.find(b => b.dataset.look === look).setAttribute('aria-pressed', on);
};
let viewer;
try {
  viewer = shapeloomViewer(element.querySelector('.canvas'), {moved: () => press('turning', false)});
} catch (error) { note.textContent = 'No 3D here: this browser has no WebGL. Downloads work all the same.'; }
for (const button of buttons)
  button.addEventListener('click', () =>
    press(button.dataset.look, button.getAttribute('aria-pressed') !== 'true'));
async function update() {
  if (!props.value) return;
  const {url, title, key} = JSON.parse(props.value);
  if (!viewer) return;
  if (!url) {  // no surface
    viewer.clear();
    note.textContent = title;
    stage.dataset.state = 'empty';
    stage.dataset.key = key;
    return;
  }
  const answer = await fetch(url);
  if (!answer.ok) { note.textContent = 'This object is not kept any more.'; return; }
  viewer.show(await answer.arrayBuffer(), () => {
    press('turning', true);
    note.textContent = title;
    stage.dataset.state = 'shown';
    stage.dataset.key = key;
  }, error => { note.textContent = 'This model cannot be shown: ' + error; });
}
watch('value', update);
update();
"""


def head() -> str:
    """Returns the scripts of the 3D view; without three.js in them the view says that there is no 3D."""
    return f"<script>{library() or ''}{CODE}</script>"
