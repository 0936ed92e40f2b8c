"""Packaging: everything it says is read from settings.ini, so there is one place to change it."""
import re
import shlex
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(ROOT / 'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
STATUS = {'3': 'Development Status :: 3 - Alpha', '4': 'Development Status :: 4 - Beta',
          '5': 'Development Status :: 5 - Production/Stable'}


def words(key):
    "The shell words of a setting, an empty list when it is not set."
    return shlex.split(cfg.get(key) or '')


def extra(name):
    "The requirements of an extra; [other] stands for those of another one."
    found = [extra(word[1:-1]) if word[0] == '[' else [word]
             for word in words(f'{name}_requirements')]
    return list(dict.fromkeys(sum(found, [])))


def page():
    "README as an index shows it: links and pictures lead into the repository."
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    branch, git = cfg['branch'], cfg['git_url']
    raw = git.replace('github.com', 'raw.githubusercontent.com')
    text = re.sub(r'(!\[[^]]*\]\()(?!\w+:)', rf'\g<1>{raw}/{branch}/', text)
    return re.sub(r'((?<!!)\[[^]!]*\]\()(?!\w+:|#)', rf'\g<1>{git}/blob/{branch}/', text)


class Build(build_py):
    "The small trained models lie beside the package in the repository, and inside it in a wheel."

    def run(self):
        super().run()
        for file in () if self.editable_mode else (ROOT / 'data' / 'weights').rglob('*'):
            if file.suffix in ('.json', '.safetensors'):
                target = Path(self.build_lib, 'interflow', '_data', file.relative_to(ROOT / 'data'))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)


EXTRAS = {name: extra(name) for name in words('extras')}
EXTRAS['all'] = list(dict.fromkeys(sum(EXTRAS.values(), [])))
setup(
    name=cfg['dist_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=page(),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='MIT',
    keywords=words('keywords'),
    url=cfg['git_url'],
    project_urls={'Source': cfg['git_url'], 'Issues': cfg['git_url'] + '/issues',
                  'Results': f'{cfg["git_url"]}/blob/{cfg["branch"]}/benchmarks/README.md'},
    classifiers=[
        STATUS[cfg['status']], 'Intended Audience :: Science/Research',
        'Intended Audience :: Developers', 'Operating System :: OS Independent',
        'Programming Language :: Python :: 3', 'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11', 'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Processing', 'Typing :: Typed'],
    packages=find_packages(include=['interflow', 'interflow.*']),
    package_data={'interflow': ['py.typed'], 'interflow.explorer': ['*.css', '*.js', '*.j2'],
                  'interflow.pages': ['*.css', '*.js', '*.j2', '*.html']},
    cmdclass={'build_py': Build},
    python_requires='>=' + cfg['min_python'],
    install_requires=words('requirements'),
    extras_require={**EXTRAS, 'dev': words('dev_requirements') + EXTRAS['all']},
    entry_points={'console_scripts': words('console_scripts')},
)
