"""What can be wrong around the jobs: one check a function, each naming what it found and the cure."""
