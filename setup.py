"""Packaging: everything it says is read from settings.ini, so there is one place to change it."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(ROOT / 'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']


def words(key):
    "The shell words of a setting, an empty list when it is not set."
    return shlex.split(cfg.get(key) or '')


EXTRAS = {name: words(f'{name}_requirements')
          for name in ('metrics', 'export', 'cluster', 'explorer')}


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='MIT',
    keywords=words('keywords'),
    url=cfg['git_url'],
    packages=find_packages(include=['interflow', 'interflow.*']),
    package_data={'interflow': ['py.typed'], 'interflow.explorer': ['*.css', '*.js', '*.j2'],
                  'interflow.pages': ['*.css', '*.html']},
    python_requires='>=' + cfg['min_python'],
    install_requires=words('requirements'),
    extras_require={**EXTRAS, 'dev': words('dev_requirements') + sum(EXTRAS.values(), [])},
    entry_points={'console_scripts': words('console_scripts')},
)
