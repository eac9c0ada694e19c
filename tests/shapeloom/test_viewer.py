"""The 3D viewer's library; pages that use it are tested in a browser."""

from shapeloom.viewer import library


def test_the_library_is_three_js_with_its_loader_and_ends_before_the_templates_own_code() -> None:
    code = library()
    assert code is not None
    assert "GLTFLoader" in code and "TrackballControls" in code and "base64_data" not in code
