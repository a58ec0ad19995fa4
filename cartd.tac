"""``twistd -ny cartd.tac``: the same service as ``twistd -n cartd``, configured by file and environment."""

from twisted.application.service import Application
from twisted.internet import reactor

from cartd.service import Options, makeService

application = Application("cartd")
options = Options()
options.parseOptions([])
makeService(options, reactor).setServiceParent(application)
