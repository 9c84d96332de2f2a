"Words that are written in one place and shown, in the language of the page, in another"
import re

def N_(s): "Mark `s` for translation without translating it now"; return s

DOUBTS = dict(unsure=N_('not sure enough'), stranger=N_('unlike the images it was trained on'), blank=N_('blank'), faint=N_('almost no contrast'),
    saturated=N_('saturated'), noise=N_('noise'), tiny=N_('very small'), colour=N_('in colour'))
STATUS = dict(sorted=N_('sorted'), review=N_('to review'), unreadable=N_('unreadable'), skipped=N_('skipped'))
SAID = dict(validated=N_('validated'), corrected=N_('corrected'), unsure=N_('unsure'), withdrawn=N_('taken back'))
WINDOW = N_('lung'),N_('soft tissue'),N_('brain'),N_('bone')
ROLE = dict(reader=N_('reader'), reviewer=N_('reviewer'), admin=N_('admin'))

# what `images` and `sort` say of files, by how it begins: the page shows these in its language and keeps the rest as detail
REASONS = {'empty: 0 bytes':N_('empty: 0 bytes'), 'not one of':N_('not an image of a kind that is read here'), 'cut short or damaged':N_('cut short or damaged'),
    'DICOM, cut short':N_('DICOM, cut short or damaged'), 'DICOM without a picture':N_('DICOM without a picture: a report, a plan, an index or the like'),
    'DICOM':N_('DICOM of a kind that is not read here'), 'too large to decode':N_('too large to decode'), 'of a kind that cannot be read':N_('of a kind that is not read here'),
    'encrypted':N_('encrypted'), 'deflated, and more':N_('too large to decode')}
_BIG,_SIZE = N_('too many pixels'),re.compile(r'\d+ x \d+ pixels, more than')

def reason(text, gettext):
    "A reason in the language of `gettext`"
    if not text or (said := gettext(text))!=text: return text and said
    if _SIZE.match(text): return f'{gettext(_BIG)} ({text})'
    for start,words in REASONS.items():
        if text.startswith(start): return gettext(words) if words==text else f'{gettext(words)} ({text})' if gettext(words)!=words else text
    return text
