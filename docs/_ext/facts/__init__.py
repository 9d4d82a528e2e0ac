"""What pages of the reference say that the code says already, as reStructuredText.

It needs no Sphinx, so that tests hold it where Sphinx is not installed.
"""

from facts.api import *
from facts.command_line import *
from facts.configuration import *
from facts.markup import *
