"""The service: listening ports, the components behind them, periodic jobs, start and stop."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    TimeoutError,
    maybeDeferred,
)
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd import logs
from cartd.archive import explained_status
from cartd.auth import Authenticator, create_authenticator
from cartd.auth.authenticator import startup_warnings
from cartd.carts.delete import Retention
from cartd.carts.plan import Planner
from cartd.carts.submit import AdmissionControl, Submissions
from cartd.certificates import RELOAD_INTERVAL
from cartd.components import Components
from cartd.config import Config
from cartd.deferreds.fair_semaphore import ByteLimit
from cartd.deferreds.tasks import Periodic, with_timeout
from cartd.deferreds.threads import (
    DedicatedThread,
    ThreadRunner,
    end_without_name_lookups,
    hanging,
)
from cartd.errors import CartdError, ConfigError, admin_message
from cartd.http.api import Api
from cartd.http.carts import CartsApi
from cartd.http.form_tokens import FormTokens
from cartd.http.monitoring import Monitoring
from cartd.http.origins import ANY_HOST
from cartd.http.pages import Pages
from cartd.http.paths import MONITORING_RULES, REQUEST_RULES, Routes
from cartd.http.problem_pages import ProblemPages
from cartd.http.request_limits import Limits
from cartd.http.routes import Rest
from cartd.http.server import LimitedSite, listen
from cartd.integrity.recovery import bind_volume
from cartd.integrity.scrub import Scrub
from cartd.model import UserQuota
from cartd.options import Options, read_config
from cartd.runtime import StopSignals, raise_nofile_limit, tune_interpreter, use_monotonic_clock
from cartd.sending.sendfile import DownloadSender
from cartd.staging.stager import STOP_STEP_TIMEOUT
from cartd.status.documents import DocumentRules, StatusDocuments
from cartd.status.events import Events
from cartd.status.listing import CartLists, FileLists
from cartd.status.polling import POLL_INTERVAL, LongPolls
from cartd.store import (
    SchemaCondition,
    connection_limit_warning,
    load_form_key,
    schema_state,
    sync,
    wait_for_database,
)
from cartd.systemd import Notifier, ServiceManager, watchdog_seconds
from cartd.volume.file_system import check_reserve

__all__ = ["Cartd", "Options", "makeService"]

SCRUB_POLL_INTERVAL = 60.0
"""Seconds between polls for carts that are due for a comparison with their hashes."""
RETENTION_INTERVAL = 3600.0
"""Seconds between deletions of expired rows of removed carts."""
TOKENS_POLL_INTERVAL = 1.0
"""Seconds between polls for changes of the token file."""

STOP_TIMEOUT = 30.0
"""Seconds beyond ``shutdown_grace`` after which a stop ends, even if something hangs: the last sync
may take 20 s, and each of a few steps waits 5 s for a database that does not respond."""

MONITORING_CONNECTIONS = 100
"""Maximum number of connections to the endpoint of the metrics."""
OTHER_LOGGER = (
    "[log] format = json has no effect: the log is written by the logger of twistd's option"
    " --logger, or of a .tac file"
)

log = Logger()


class Cartd(Service):
    """Listens, stages, sends and evicts, from ``startService`` to ``stopService``."""

    def __init__(
        self, components: Components, authenticator: Authenticator | None, form_key: bytes
    ) -> None:
        """``form_key``: the secret key of :class:`cartd.http.form_tokens.FormTokens`."""
        self._components = components
        self._authenticator = authenticator
        config, reactor = components.config, components.reactor
        memory = ByteLimit(config.manifest_memory)
        quota = UserQuota(
            config.auth_max_carts_staging, config.auth_max_files, config.auth_max_bytes
        )
        self._submissions = Submissions(
            components.store,
            components.removal,
            components.threads,
            bundle_task=config.bundle_task,
            require_hashsum=config.require_hashsum,
            max_entries=config.max_entries,
            memory=memory,
            admission_slot=AdmissionControl(
                config.max_carts_staging, components.store.carts.unfinished
            ).slot,
            limits=quota,
            stage=lambda cart_id: components.stager.begin(cart_id, resumed=False),
            restage=lambda cart: components.repair.restage(cart, retry_failed=True),
            now=components.now,
            metrics=components.metrics,
        )
        senders = DownloadSender(
            components.threads,
            reactor,
            transfer_size=config.transfer_size,
            downloads=components.pins.count,
            max_seconds=config.max_download_time,
            metrics=components.metrics,
        )
        self._documents = StatusDocuments(
            components.store,
            components.now,
            reactor.seconds,
            DocumentRules(
                config.public_url, config.lru_buffer_time, config.lru_purge, config.organization
            ),
        )
        self._events = Events(
            components.store, self._documents, reactor, limit=config.max_event_streams
        )
        self._polls = LongPolls(components.store.statuses.versions, reactor)
        rest = Rest(
            self._submissions,
            components.downloads,
            send=senders.send,
            recovered=components.recovery.wait_until_recovered,
            documents=self._documents,
        )
        api = Api(
            self._documents,
            self._events,
            self._polls,
            recovered=components.recovery.wait_until_recovered,
        )
        base = config.public_url or "/"
        lists = CartLists(
            components.store, self._documents, base=base, without_owner=config.page_list
        )
        carts_api = CartsApi(
            self._submissions,
            self._documents,
            FileLists(components.store, base=base),
            lists,
            Planner(
                components.store,
                components.retry_policy,
                parse=self._submissions.parse,
                memory=memory,
                bundle_task=config.bundle_task,
                state=lambda archive_id: explained_status(components.archive, archive_id),
                fit=components.evictor.fit,
                limits=quota,
                max_carts_staging=config.max_carts_staging,
                clock=reactor,
            ),
            recovered=components.recovery.wait_until_recovered,
        )
        limits = _limits(config)
        exposition = components.exposition if config.metrics_enabled else None
        monitoring = Monitoring(
            components.health, exposition if config.metrics_endpoint is None else None
        )
        pages = Pages(
            components.store,
            self._documents,
            self._submissions,
            download=rest.app.resource(),
            auth=authenticator is not None,
            tokens=authenticator is not None and authenticator.tokens,
            public_url=config.public_url,
            overviews=components.overviews,
            form_tokens=FormTokens(form_key, components.now),
            lists=lists,
            listed=config.page_list and authenticator is None,
            recovered=components.recovery.wait_until_recovered,
            now=components.now,
        )
        self._site = LimitedSite(
            Routes(rest, api, carts_api, monitoring, ProblemPages(config.public_url), pages=pages),
            REQUEST_RULES,
            reactor,
            limits,
            authenticator,
            allowed_hosts=config.allowed_hosts,
            allowed_origins=config.allowed_origins,
            public_url=config.public_url,
            request_id_peers=(*config.auth_trusted_proxies, *config.log_request_id_proxies),
            threads=components.threads,
            metrics=components.metrics,
        )
        self._monitoring_site = LimitedSite(
            Monitoring(components.health, exposition, open_to_all=True).app.resource(),
            MONITORING_RULES,
            reactor,
            replace(limits, max_connections=MONITORING_CONNECTIONS),
            allowed_hosts=[ANY_HOST],
            threads=components.threads,
        )

        def set_gauges() -> None:
            components.metrics.connections.set(self._site.connections)
            components.metrics.connections_limit.set(limits.max_connections)
            components.metrics.event_streams.set(self._events.count)
            senders.count_sent()

        components.exposition.add_gauges(set_gauges)
        self._periodic_jobs = [
            Periodic(reactor, config.lru_interval, work)
            for work in (
                components.evictor.enforce_limits,
                components.removal.sweep,
                self._check_volume_once,
            )
        ]
        if (interval := config.scrub_interval) > 0:
            scrub = Scrub(
                components.store,
                components.verification,
                components.repair,
                reactor,
                components.now,
                interval,
            )
            self._periodic_jobs.append(
                Periodic(reactor, min(interval, SCRUB_POLL_INTERVAL), scrub.scrub)
            )
        if (kept := config.retention) > 0:
            retention = Retention(components.store.removals, kept, reactor, components.now)
            self._periodic_jobs.append(
                Periodic(reactor, RETENTION_INTERVAL, retention.delete_expired)
            )
        self._periodic_jobs.append(Periodic(reactor, POLL_INTERVAL, self._polls.poll))
        if authenticator is not None:
            self._periodic_jobs.append(Periodic(reactor, TOKENS_POLL_INTERVAL, authenticator.poll))
        if components.archive_tls.files:
            self._reload_periodically(components.archive_tls.poll)
        self._manager = _service_manager(components)
        self._volume_checked = False
        self._ports: list[IListeningPort] = []
        self._monitoring_port: IListeningPort | None = None
        """Open until the end of a stop, to observe it."""
        self._draining: Deferred[None] | None = None
        self._force_stopped = False
        self._stopped: Deferred[None] = Deferred()
        self._stop_timer: IDelayedCall | None = None

    def privilegedStartService(self) -> None:
        """Bind the endpoints, before privileges are dropped."""
        listening = []
        # Once more, as twistd sets its own umask when it daemonizes.
        os.umask(self._components.config.umask)
        for description in _endpoints(self._components.config):
            port = self._listen(description, self._site)
            self._ports.append(port)
            listening.append((description, port.getHost()))
        config = self._components.config
        if config.metrics_enabled and config.metrics_endpoint is not None:
            self._monitoring_port = self._listen(config.metrics_endpoint, self._monitoring_site)
        authenticator = self._authenticator
        tokens = authenticator is not None and authenticator.tokens
        for warning in startup_warnings(
            listening,
            auth_enabled=authenticator is not None,
            tokens=tokens,
            proxies=self._components.config.auth_trusted_proxies,
        ):
            log.warn("{warning}", warning=warning)

    def _listen(self, description: str, site: LimitedSite) -> IListeningPort:
        """Bind one endpoint; exit if that fails."""
        umask = self._components.config.umask
        try:
            port, tls = listen(self._components.reactor, description, site, umask=umask)
        except ConfigError as error:
            _exit_with(str(error))
        if tls is not None:
            self._reload_periodically(tls.poll)
        log.info("Listening on {endpoint}", endpoint=description)
        return port

    def _reload_periodically(self, poll: Callable[[ThreadRunner], Awaitable[None]]) -> None:
        """Reload certificates when their files change."""
        threads = self._components.threads
        self._periodic_jobs.append(
            Periodic(self._components.reactor, RELOAD_INTERVAL, lambda: poll(threads))
        )

    def startService(self) -> None:
        super().startService()
        try:
            self._components.start(resume=True)
        except OSError as error:
            _exit_with(f"volume_path: it cannot be used: {error}")
        self._components.health.start()
        self._components.reactor_lag.start()
        if self._manager is not None:
            self._manager.start()
        for work in self._periodic_jobs:
            work.start()

    async def _check_volume_once(self) -> None:
        """Import carts of Pacifica and warn of orphans, once volume and database are available."""
        if not self._volume_checked:
            await self._components.repair.import_all()
            await self._components.orphans.warn()
            self._volume_checked = True

    async def _stop(self) -> None:
        try:
            await self._end_work()
        finally:
            try:
                self._site.close_connections()
                if self._monitoring_port is not None:
                    await maybeDeferred(self._monitoring_port.stopListening)
                self._monitoring_site.close_connections()
            finally:
                left = await self._components.close()
                if self._manager is not None:
                    self._manager.stop()
                self._site.close_log()
                self._monitoring_site.close_log()
        if left and self._stop_timer is not None and self._stop_timer.active():
            self._log_hanging(left)

    async def _end_work(self) -> None:
        self._submissions.close()
        self._components.health.begin_stop()
        self._events.stop()
        self._polls.close()
        self._components.volume.stop()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        ending = [Deferred.fromCoroutine(work.stop()) for work in self._periodic_jobs]
        with suppress(TimeoutError):  # a disk that hangs
            await with_timeout(
                STOP_STEP_TIMEOUT,
                DeferredList(ending, consumeErrors=True),
                self._components.reactor,
            )
        await self._components.stop()
        await self._drain()

    def stopService(self) -> Deferred[None]:
        """Reject new carts, stop staging, wait for downloads up to the grace time, then close."""
        super().stopService()
        if self._manager is not None:
            self._manager.begin_stop()
        self._stopped = Deferred()
        self._stop_timer = self._components.reactor.callLater(
            self._grace() + STOP_TIMEOUT, self._abandon_stop
        )
        Deferred.fromCoroutine(self._stop()).addBoth(self._on_stopped)
        return self._stopped

    def _on_stopped(self, result: Failure | None) -> None:
        if isinstance(result, Failure):
            # Twisted does not log it.
            log.failure("The stop failed", result)
        if self._stop_timer is not None and self._stop_timer.active():
            self._stop_timer.cancel()
            self._stopped.callback(None)

    def _abandon_stop(self) -> None:
        self._log_hanging(hanging())
        self._stopped.callback(None)

    def _log_hanging(self, left: str) -> None:
        log.error(
            "The service exits without waiting for operations that hang, as on a disk that does not"
            " respond: {hanging}. The next start continues them",
            hanging=left or "none on the disk",
        )

    def force_stop(self) -> None:
        """Stop waiting for downloads."""
        self._force_stopped = True
        if self._draining is not None:
            self._draining.cancel()
        if self._stop_timer is not None and self._stop_timer.active():
            self._stop_timer.reset(STOP_TIMEOUT)

    def _grace(self) -> float:
        return 0.0 if self._force_stopped else self._components.config.shutdown_grace

    async def _drain(self) -> None:
        idle = Deferred.fromCoroutine(self._components.pins.wait_until_idle())
        self._draining = with_timeout(self._grace(), idle, self._components.reactor)
        try:
            await self._draining
        except (TimeoutError, CancelledError):
            log.warn("Aborting {number} downloads", number=self._components.pins.count())
        finally:
            self._draining = None


def makeService(options: Options, reactor: Any = None) -> IService:
    """Build the service for ``twistd``.

    :raises SystemExit: it cannot run; the message is one line.
    """
    if reactor is None:
        from twisted.internet import reactor
    use_monotonic_clock(reactor)
    end_without_name_lookups(reactor)
    try:
        config = read_config(options, os.environ)
        os.umask(config.umask)
        logs.use_format(config.log_format)
        components = Components(config, reactor, _prepare(config))
        form_key = load_form_key(config.database_url)
        too_few = connection_limit_warning(config.database_url)
        authenticator = create_authenticator(config, DedicatedThread(reactor), reactor)
    except CartdError as error:
        raise SystemExit(f"cartd: {admin_message(error)}") from None
    other_logger = [OTHER_LOGGER] if logs.is_json() and not logs.is_installed() else []
    for note in (*config.warnings, *([too_few] if too_few else []), *other_logger):
        log.warn("{note}", note=note)
    cartd = Cartd(components, authenticator, form_key)
    service = MultiService()
    # In this order, so that a service that listens can already be stopped.
    StopSignals(reactor, cartd.force_stop).setServiceParent(service)
    cartd.setServiceParent(service)
    tune_interpreter()
    return service


def _prepare(config: Config) -> int | None:
    """Check what a start needs, blocking, as nothing else runs yet; return the volume's number."""
    wait_for_database(
        config.database_url,
        attempts=config.database_connect_attempts,
        wait=config.database_connect_wait,
        sleep=time.sleep,
        notify=_print_error,
    )
    state = schema_state(config.database_url)
    if state.condition is SchemaCondition.MISSING:
        sync(config.database_url)
    elif not state.safe:
        raise ConfigError(state.explanation)
    number = bind_volume(config.database_url, config.volume_path, report=_warn)
    check_reserve(config.volume_path, config.volume_reserve)
    return number


def _service_manager(components: Components) -> ServiceManager | None:
    """Return the service manager that started this process, if it wants notifications."""
    notifier = Notifier.from_environment(os.environ)
    if notifier is None:
        return None
    return ServiceManager(
        notifier,
        components.reactor,
        watchdog=watchdog_seconds(os.environ, os.getpid()),
        started=lambda: components.recovery.recovered,
        status=components.status_line,
    )


def _warn(line: str) -> None:
    log.warn("{line}", line=line)


def _endpoints(config: Config) -> tuple[str, ...]:
    if config.endpoints:
        return config.endpoints
    address = config.address.replace(":", r"\:")
    return (f"tcp:{config.port}:interface={address}",)


def _limits(config: Config) -> Limits:
    """Return the configured limits, reduced to what the system allows."""
    fit = raise_nofile_limit(config.max_connections, config.archive_max_connections)
    return replace(Limits.of(config), max_connections=fit)


def _exit_with(reason: str) -> NoReturn:
    """Exit after ``twistd`` has opened its log, where an exception alone would end up."""
    _print_error(reason)
    raise SystemExit(f"cartd: {reason}")


def _print_error(line: str) -> None:
    """Print to the terminal: the log is not open yet, or is a file."""
    if sys.__stderr__ is not None:
        sys.__stderr__.write(f"cartd: {line}\n")
        sys.__stderr__.flush()
