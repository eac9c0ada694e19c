"""The report's 3D view: the models lie in the page as base64 text, one script element of a data type each.

They are parsed when their figure is chosen. The viewer itself is `shapeloom.viewer`.
"""

import base64

from shapeloom.viewer import CODE

_FIGURES = """
(() => {
  const box = document.getElementById('viewer'), note = document.getElementById('viewer-note');
  const figures = [...document.querySelectorAll('figure.model')];
  let viewer;
  function show(figure) {
    const text = document.getElementById(figure.dataset.model).textContent;
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    viewer.show(bytes.buffer, () => {
      viewer.set('turning', true);
      note.textContent = figure.dataset.prompt + ' (drag to turn, scroll or pinch to zoom)';
      figures.forEach(other => other.classList.toggle('chosen', other === figure));
      box.dataset.ready = figure.dataset.model;
    }, error => { note.textContent = 'This model cannot be shown: ' + error; });
  }
  try { viewer = shapeloomViewer(box); } catch (error) {
    note.textContent = 'No 3D here: this browser has no WebGL. The pictures below still move.';
    return;
  }
  figures.forEach(figure => figure.addEventListener('click', () => show(figure)));
  if (figures.length) show(figures[0]);
})();
"""


def model_element(identity: str, glb: bytes) -> str:
    """Returns the script element that holds a GLB; `identity` is an id without special characters."""
    return f'<script type="model/gltf-binary" id="{identity}">{base64.b64encode(glb).decode()}</script>'


def scripts(code: str) -> list[str]:
    """Returns the library and the viewer as script elements."""
    return [f"<script>{code}</script>", f"<script>{CODE}{_FIGURES}</script>"]


VIEWER = '<div id="viewer"><div id="viewer-note">loading…</div></div>'
"""Where the viewer is drawn."""
