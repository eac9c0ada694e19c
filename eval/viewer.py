"""A 3D viewer for GLB files inside a page: three.js as trimesh ships it, embedded once for all models.

Models lie in the page as base64 text, one script element of a data type each, and are parsed when chosen.
"""

import base64
import io
import zipfile

from trimesh import resources

from shapeloom.log import get_logger

log = get_logger("report")

_TEMPLATE = "viewer.html.template"
# Where the libraries (three.js, TrackballControls, GLTFLoader) end and the template's own page code begins.
_OWN_CODE = "var camera,controls,scene,renderer"

_CODE = """
(() => {
  const box = document.getElementById('viewer'), note = document.getElementById('viewer-note');
  const figures = [...document.querySelectorAll('figure.model')];
  let renderer, scene, camera, light, controls, wanted, shown, touched = false;
  function start() {
    renderer = new THREE.WebGLRenderer({antialias: true, alpha: true});
    renderer.outputEncoding = THREE.sRGBEncoding;
    renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    box.prepend(renderer.domElement);
    scene = new THREE.Scene();
    camera = new THREE.PerspectiveCamera(35, 1, 0.05, 50);
    scene.add(new THREE.HemisphereLight(0xffffff, 0xb0b0b0, 0.75));
    light = new THREE.DirectionalLight(0xffffff, 0.55);
    scene.add(light);
    controls = new THREE.TrackballControls(camera, renderer.domElement);
    controls.rotateSpeed = 2.5;
    controls.noPan = true;
    for (const kind of ['pointerdown', 'wheel'])
      renderer.domElement.addEventListener(kind, () => { touched = true; }, {passive: true});
    new ResizeObserver(resize).observe(box);
    resize();
    draw();
  }
  function resize() {
    renderer.setSize(box.clientWidth, box.clientHeight);
    camera.aspect = box.clientWidth / box.clientHeight;
    camera.updateProjectionMatrix();
    controls.handleResize();
  }
  function draw() {
    requestAnimationFrame(draw);
    if (shown && !touched) shown.rotation.y += 0.008;
    controls.update();
    light.position.copy(camera.position);
    renderer.render(scene, camera);
  }
  function show(figure) {
    wanted = figure;
    const text = document.getElementById(figure.dataset.model).textContent;
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    new THREE.GLTFLoader().parse(bytes.buffer, '', gltf => {
      if (wanted !== figure) return;  // another was chosen while this one was loading
      if (shown) scene.remove(shown);
      const ball = new THREE.Box3().setFromObject(gltf.scene).getBoundingSphere(new THREE.Sphere());
      shown = new THREE.Group();
      gltf.scene.position.sub(ball.center);
      shown.add(gltf.scene);
      scene.add(shown);
      const far = ball.radius / Math.sin(Math.PI * 35 / 360) / Math.min(1, camera.aspect);
      controls.reset();
      camera.position.set(0.35 * far, 0.35 * far, 0.87 * far);
      touched = false;
      note.textContent = figure.dataset.prompt + ' (drag to turn, scroll or pinch to zoom)';
      figures.forEach(other => other.classList.toggle('chosen', other === figure));
      box.dataset.ready = figure.dataset.model;
    }, error => { note.textContent = 'This model cannot be shown: ' + error; });
  }
  try { start(); } catch (error) {
    note.textContent = 'No 3D here: this browser has no WebGL. The pictures below still move.';
    return;
  }
  figures.forEach(figure => figure.addEventListener('click', () => show(figure)));
  if (figures.length) show(figures[0]);
})();
"""


def library() -> str | None:
    """Returns the JavaScript of three.js and its loader, or None where this trimesh has them no more."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(resources.get_bytes("templates/viewer.zip")))
        page = archive.read(_TEMPLATE).decode()
    except (OSError, KeyError, ValueError) as error:
        log.warning("trimesh's viewer was not found (%s); the report has no 3D view", error)
        return None
    start, end = page.find("<script>"), page.find(_OWN_CODE)
    code = page[start + len("<script>") : end]
    if start < 0 or end < 0 or "GLTFLoader" not in code or "</script" in code:
        log.warning("trimesh's viewer has another layout than expected; the report has no 3D view")
        return None
    return code


def model_element(identity: str, glb: bytes) -> str:
    """Returns the script element that holds a GLB; `identity` is an id without special characters."""
    return f'<script type="model/gltf-binary" id="{identity}">{base64.b64encode(glb).decode()}</script>'


def scripts(code: str) -> list[str]:
    """Returns the library and the viewer as script elements."""
    return [f"<script>{code}</script>", f"<script>{_CODE}</script>"]


VIEWER = '<div id="viewer"><div id="viewer-note">loading…</div></div>'
"""Where the viewer is drawn."""
