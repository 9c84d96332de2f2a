"Build the package from `settings.ini`; `pyproject.toml` names the build system, this file says what is in the box."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

def lines(key): return [o.strip() for o in cfg[key].splitlines() if o.strip()]

version = re.search(r'^__version__\s*=\s*"([^"]+)"', (here/cfg['name']/'__init__.py').read_text(encoding='utf-8'), re.M)[1]

setup(
    version=version,
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    license=cfg['license'],
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3',
                 'Topic :: Scientific/Engineering :: Medical Science Apps.'],
    packages=find_packages(include=[cfg['name'], cfg['name'] + '.*']),
    include_package_data=False,
    package_data={cfg['name']: ['learners/*/*', 'migrations/*.py', 'migrations/versions/*.py', 'web/templates/*', 'web/static/*', 'web/translations/*', 'web/translations/*/LC_MESSAGES/*']},
    python_requires='>=' + cfg['min_python'],
    install_requires=lines('requirements'),
    extras_require={'dev': lines('dev_requirements'), **{o: lines(f'{o}_requirements') for o in ('parquet','explain','audit','search','store','web')}},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['mednist_fastai = mednist_fastai._modidx:d']},
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    zip_safe=False,
)
