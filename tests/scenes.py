"""Small scenes for tests: crops of the embedded photographs."""
from interflow.core import read_image, write_image


def write_crops(folder, paths, rows, columns):
    "Write the same part of each photograph, two slices, as PNG files under their own names; returns `folder`."
    for path in paths:
        write_image(folder / f'{path.stem}.png', read_image(path)[:, rows, columns])
    return folder
