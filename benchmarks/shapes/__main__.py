"""Write the shape files anew."""

from benchmarks.models import MODELS, build
from benchmarks.shapes import FOLDER, shapes_of, spell

for name in MODELS:
    (FOLDER / f"{name}.txt").write_text(spell(shapes_of(build(name))))
