"How notebooks become pages with nbconvert: nbdev's directives are obeyed, so no quarto is needed. Used by `make readme` and `make docs`."
import re

_directive = re.compile(r'^#\|.*\n?', re.M)

def directives(nb, resources):
    "Drop cells marked `#| hide` or `default_exp`, the code of those marked `#| echo: false`, and the directives themselves"
    keep = []
    for c in nb.cells:
        if c.cell_type=='code':
            if re.search(r'^#\|\s*(hide|default_exp)\b', c.source, re.M): continue
            if re.search(r'^#\|\s*echo:\s*false', c.source, re.M): c.metadata['transient'] = dict(remove_source=True)
            c.source = _directive.sub('', c.source)
        keep.append(c)
    nb.cells = keep
    return nb, resources

c = get_config()  # noqa: F821  (nbconvert gives it to this file)
c.MarkdownExporter.preprocessors = [directives]
c.HTMLExporter.preprocessors = [directives]
c.NbConvertApp.output_files_dir = 'nbs/images' # where the README's picture goes, seen from the top of the repository
c.TemplateExporter.exclude_input_prompt = True
c.TemplateExporter.exclude_output_prompt = True
