"""Whether all goes well when something goes wrong: kills, full disks, hostile files, strangers, load."""
