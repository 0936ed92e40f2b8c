"""Renew the tables of benchmarks/README.md: each stands below a comment that names the stored file it is a copy of.

    python benchmarks/results.py [--check]

`--check` writes nothing, and ends with exit code 1 where a table is not the stored one.
"""
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
TABLE = re.compile(r'<!-- (\S+) -->\n```\n.*?```', re.S)


def renewed(text: str) -> str:
    "The page with each table as it is stored today."
    def table(match):
        if not (HERE / match[1]).exists():      # not measured yet, as the page says in the place of the table
            return match[0]
        stored = (HERE / match[1]).read_text(encoding='utf-8').rstrip()
        return f'<!-- {match[1]} -->\n```\n{stored}\n```'
    return TABLE.sub(table, text)


def main() -> int:
    "Renew the page, or only look."
    page = HERE / 'README.md'
    old = page.read_text(encoding='utf-8')
    new = renewed(old)
    if '--check' in sys.argv:
        return int(new != old)
    page.write_text(new, encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
