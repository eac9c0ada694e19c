"""A sample of the hostile files, in a process of its own: an audit hook can't be taken out again."""

import subprocess
import sys


def test_hostile_files_harm_nobody_and_are_all_accounted_for():
    command = [sys.executable, "-m", "benchmarks.drills.hostile_files", "--num", "34", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "34 cases" in done.stdout


def test_reading_outside_the_folder_would_be_noticed(tmp_path):
    script = (
        "import sys; from benchmarks.drills.hostile_files import Watch\n"
        "w = Watch((sys.argv[1],)); w.start()\n"
        "open(sys.argv[1] + '/in', 'rb'); open('/etc/hostname', 'rb'); open(sys.argv[1] + '/in', 'ab')\n"
        "import os; os.mkdir(sys.argv[1] + '/x'); print([s.split()[0] for s in w.seen])"
    )
    (tmp_path / "in").touch()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['open', 'open', 'os.mkdir']"
