"""A 3D viewer for GLB files inside a page: three.js as trimesh ships it, so that nothing is fetched.

`library()` is three.js with its loader, `CODE` defines `shapeloomViewer(box, {moved})`, which draws into an
element (three.js in the page comes first) and returns

    show(bytes, done, failed)   an ArrayBuffer of a GLB, framed and slowly turning until it is touched
    clear()                     shows nothing
    set(what, on)               "texture", "wireframe" or "turning"

It throws where the browser has no WebGL.
"""

import io
import zipfile

from trimesh import resources

from shapeloom.log import get_logger

log = get_logger("viewer")

_TEMPLATE = "viewer.html.template"
# Where the libraries (three.js, TrackballControls, GLTFLoader) end and the template's own page code begins.
_OWN_CODE = "var camera,controls,scene,renderer"

CODE = """
function shapeloomViewer(box, {moved} = {}) {
  const renderer = new THREE.WebGLRenderer({antialias: true, alpha: true});
  renderer.outputEncoding = THREE.sRGBEncoding;
  renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
  box.prepend(renderer.domElement);
  const scene = new THREE.Scene();
  const camera = new THREE.PerspectiveCamera(35, 1, 0.05, 50);
  scene.add(new THREE.HemisphereLight(0xffffff, 0xb0b0b0, 0.75));
  const light = new THREE.DirectionalLight(0xffffff, 0.55);
  scene.add(light);
  const controls = new THREE.TrackballControls(camera, renderer.domElement);
  controls.rotateSpeed = 2.5;
  controls.noPan = true;
  const look = {texture: true, wireframe: false, turning: true};
  let shown, latest = 0, stale = true;  // nothing is drawn again that hasn't changed
  function resize() {
    renderer.setSize(box.clientWidth, box.clientHeight);
    camera.aspect = box.clientWidth / Math.max(1, box.clientHeight);
    camera.updateProjectionMatrix();
    controls.handleResize();
    stale = true;
  }
  function draw() {
    if (!box.isConnected) { renderer.dispose(); return; }
    requestAnimationFrame(draw);
    controls.update();
    if (shown && look.turning) { shown.rotation.y += 0.008; stale = true; }
    if (!stale) return;
    stale = false;
    light.position.copy(camera.position);
    renderer.render(scene, camera);
  }
  controls.addEventListener('change', () => { stale = true; });
  function dress() {
    stale = true;
    if (!shown) return;
    shown.traverse(part => {
      if (!part.isMesh) return;
      const plain = part.userData.plain ??= new THREE.MeshStandardMaterial(
        {color: 0xc3c9d4, roughness: 0.8, metalness: 0, side: THREE.DoubleSide});
      part.userData.own ??= part.material;
      part.material = look.texture ? part.userData.own : plain;
      part.material.wireframe = look.wireframe;
    });
  }
  function forget(group) {
    scene.remove(group);
    group.traverse(part => {
      if (!part.isMesh) return;
      part.geometry.dispose();
      for (const material of [part.userData.own, part.userData.plain]) {
        if (material && material.map) material.map.dispose();
        if (material) material.dispose();
      }
    });
  }
  function show(bytes, done, failed) {
    const mine = ++latest;
    new THREE.GLTFLoader().parse(bytes, '', gltf => {
      if (mine !== latest) return;  // another was chosen while this one was loading
      if (shown) forget(shown);
      const ball = new THREE.Box3().setFromObject(gltf.scene).getBoundingSphere(new THREE.Sphere());
      shown = new THREE.Group();
      gltf.scene.position.sub(ball.center);
      shown.add(gltf.scene);
      scene.add(shown);
      dress();
      const far = ball.radius / Math.sin(Math.PI * 35 / 360) / Math.min(1, camera.aspect);
      controls.reset();
      camera.position.set(0.35 * far, 0.35 * far, 0.87 * far);
      done();
    }, failed);
  }
  for (const kind of ['pointerdown', 'wheel'])
    renderer.domElement.addEventListener(kind, () => {
      look.turning = false;
      if (moved) moved();
    }, {passive: true});
  new ResizeObserver(resize).observe(box);
  resize();
  draw();
  return {
    show,
    clear() { latest++; if (shown) forget(shown); shown = undefined; stale = true; },
    set(what, on) { look[what] = on; dress(); },
  };
}
"""


def library() -> str | None:
    """Returns the JavaScript of three.js and its loader, or None where this trimesh has them no more."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(resources.get_bytes("templates/viewer.zip")))
        page = archive.read(_TEMPLATE).decode()
    except (OSError, KeyError, ValueError) as error:
        log.warning("trimesh's viewer was not found (%s); there is no 3D view", error)
        return None
    start, end = page.find("<script>"), page.find(_OWN_CODE)
    code = page[start + len("<script>") : end]
    if start < 0 or end < 0 or "GLTFLoader" not in code or "</script" in code:
        log.warning("trimesh's viewer has another layout than expected; there is no 3D view")
        return None
    return code
