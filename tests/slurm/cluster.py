"""A real Slurm on one host, made for the tests and thrown away: controller, four nodes, accounting, fake GPUs.

Everything runs as root, on the loopback interface, in a folder of its own: munge, slurmdbd over MariaDB, slurmctld and
one slurmd for each virtual node. n3 and n4 have two CPUs and two fake GPUs each (Slurm wants device files). Daemons
can be stopped and started singly, which is what the tests are about.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db", "sbatch", "sacct")
NODES = ("n1", "n2", "n3", "n4")
ACCOUNT = "lab"
_LONGEST_WAIT = 300.0  # for what takes a second on an idle machine


def missing() -> str | None:
    """Why no cluster can be started here; None where it can."""
    if os.geteuid() != 0:
        return "a cluster is started as root"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Cluster:
    """A running cluster.

    Attributes:
        folder: its own.
        environment: in which Slurm's commands find it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._host = socket.gethostname().split(".")[0]
        self._port = _free_ports(20)  # slurmctld's; those of the others follow
        wrapper = folder / "bin"
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(wrapper), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]),
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        """Starts all daemons, and returns when every node is idle."""
        for name in ("bin", "etc", "run", "log", "state", "munge", "spool", "db", "dev"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # MariaDB has a user of its own
        self._write_files()
        self._start_munge()
        self._start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.ask("scontrol", "update", f"NodeName={','.join(NODES)}", "State=RESUME", check=False)
        wait_until(self._is_idle, every=0.5)

    def _is_idle(self) -> bool:
        return len(set(self.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split())) == len(NODES)

    def stop(self) -> None:
        """Ends every job and every daemon."""
        self.ask("scancel", "-u", "root", check=False)
        time.sleep(1)
        run = self.folder / "run"
        for file in [*sorted(run.glob("slurm*.pid")), run / "mariadbd.pid", run / "munged.pid"]:
            self._end(file, signal.SIGTERM)
        self._end_what_is_left()

    def _end_what_is_left(self) -> None:
        """A node that is lost takes its jobs' processes along; here they live on, with nobody to end them."""
        ours = f"SLURM_CONF={self.folder / 'etc' / 'slurm.conf'}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = (process / "environ").read_bytes().split(b"\0")
                if ours in variables and any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue  # it has ended

    def ask(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        return self.run(self.folder, *command, check=check, longest=_LONGEST_WAIT).stdout

    def run(
        self, folder: Path, *program: str, check: bool = True, longest: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end where the cluster's commands are at hand."""
        done = subprocess.run(
            program, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=longest, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(program)}: {done.stdout}{done.stderr}")
        return done

    def jobs(self) -> list[tuple[str, str, str]]:
        """Number, state and comment of every job that is queued or running, ascending."""
        rows = self.ask("squeue", "-h", "-o", "%i|%T|%k", "-S", "i").splitlines()
        return [tuple(row.split("|", 2)) for row in rows]  # type: ignore[misc]

    def known(self) -> list[tuple[str, str]]:
        """Number and state of every job that accounting knows, the oldest first."""
        rows = self.ask("sacct", "-X", "-n", "-P", "--starttime", "now-1day", "--format=JobIDRaw,State").splitlines()
        return [(row.split("|")[0], row.split("|")[1].split()[0]) for row in rows]

    def jobs_named(self, name: str) -> list[tuple[str, str]]:
        """Name and state, CANCELLED without by whom, of every job whose name begins so, the oldest first."""
        asked = ("sacct", "-X", "-n", "-P", "--starttime", "now-1day", "--format=JobName,State")
        rows = [row.split("|") for row in self.ask(*asked).splitlines()]
        return [(of, state.split()[0]) for of, state in rows if of.startswith(name)]

    def start_controller(self) -> None:
        self._run("slurmctld")

    def end_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._end(self.folder / "run" / "slurmctld.pid", number)

    def start_node(self, node: str) -> None:
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        self._run("slurmd", "-N", node)

    def end_node(self, node: str) -> None:
        self._end(self.folder / "run" / f"slurmd.{node}.pid", signal.SIGKILL)

    def start_database(self) -> None:
        self._run("slurmdbd")

    def end_database(self) -> None:
        self._end(self.folder / "run" / "slurmdbd.pid", signal.SIGTERM)

    def _run(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=_LONGEST_WAIT)

    def _end(self, file: Path, number: signal.Signals) -> None:
        if not file.is_file() or not file.read_text().strip():
            return
        process = int(file.read_text())
        try:
            os.kill(process, number)
            wait_until(lambda: not Path(f"/proc/{process}").exists() or _is_zombie(process))
        except ProcessLookupError:
            pass
        file.unlink(missing_ok=True)

    def _start_munge(self) -> None:
        folder, run = self.folder / "munge", self.folder / "run"
        folder.chmod(0o700)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={run / 'munge.socket'}",
            f"--pid-file={run / 'munged.pid'}",
            f"--log-file={self.folder / 'log' / 'munged.log'}",
            f"--seed-file={folder / 'seed'}",
        )

    def _start_accounting(self) -> None:
        database, run, log = self.folder / "db", self.folder / "run", self.folder / "log"
        shutil.chown(database, "mysql", "mysql")
        socket_file = database / "s.sock"
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                "--user=mysql",
                f"--datadir={database / 'data'}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=True,
            capture_output=True,
            env=self.environment,
        )
        with (log / "mariadbd.log").open("w") as stream:
            server = subprocess.Popen(
                [
                    "mariadbd",
                    "--no-defaults",
                    "--user=mysql",
                    f"--datadir={database / 'data'}",
                    f"--socket={socket_file}",
                    "--bind-address=127.0.0.1",
                    f"--port={self._port + 2}",
                    "--innodb-buffer-pool-size=64M",
                    "--innodb-log-file-size=64M",
                    "--innodb-lock-wait-timeout=900",
                    "--innodb-flush-log-at-trx-commit=2",
                ],
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=self.environment,
            )
        (run / "mariadbd.pid").write_text(str(server.pid))
        client = ["mariadb", "--no-defaults", "-uroot", "-S", str(socket_file), "-e"]
        wait_until(lambda: subprocess.run([*client, "SELECT 1"], capture_output=True, check=False).returncode == 0)
        statements = "CREATE DATABASE slurm_acct; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; "
        statements += "CREATE USER slurm@localhost IDENTIFIED BY 'slurm'; "
        statements += "GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1'; GRANT ALL ON slurm_acct.* TO slurm@localhost;"
        subprocess.run([*client, statements], check=True, capture_output=True)
        self.start_database()
        wait_until(lambda: subprocess.run(["sacctmgr", "-n", "show", "cluster"], **self._quiet()).returncode == 0)
        self.ask("sacctmgr", "-i", "add", "cluster", "box", check=False)
        self.ask("sacctmgr", "-i", "add", "account", ACCOUNT, "Cluster=box", "Description=l", "Organization=l")
        self.ask(
            "sacctmgr", "-i", "add", "user", "root", f"Account={ACCOUNT}", "Cluster=box", f"DefaultAccount={ACCOUNT}"
        )

    def _quiet(self) -> dict[str, object]:
        return {"env": self.environment, "capture_output": True, "check": False}

    def _write_files(self) -> None:
        etc, run, log = self.folder / "etc", self.folder / "run", self.folder / "log"
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={self._host} NodeAddr=127.0.0.1 Port={self._port + 10 + index} "
            f"RealMemory=8000 State=UNKNOWN {'CPUs=2 Gres=gpu:a100:2' if index >= 2 else 'CPUs=1'}"
            for index, node in enumerate(NODES)
        )
        (etc / "slurm.conf").write_text(f"""\
ClusterName=box
SlurmctldHost={self._host}(127.0.0.1)
SlurmctldPort={self._port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={run / "munge.socket"}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={self.folder / "state"}
SlurmdSpoolDir={self.folder / "spool"}/%n
SlurmctldPidFile={run / "slurmctld.pid"}
SlurmdPidFile={run}/slurmd.%n.pid
SlurmctldLogFile={log / "slurmctld.log"}
SlurmdLogFile={log}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0,sched_min_interval=0
MinJobAge=3600
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
SlurmctldTimeout=30
SlurmdTimeout=120
DefMemPerCPU=500
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={self._port + 1}
AccountingStoragePass={run / "munge.socket"}
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
{nodes}
PartitionName=cpu Nodes={",".join(NODES)} Default=YES MaxTime=24:00:00 State=UP
PartitionName=pair Nodes={",".join(NODES[:2])} MaxTime=24:00:00 State=UP
PartitionName=urgent Nodes={",".join(NODES[:2])} MaxTime=24:00:00 PriorityTier=10 State=UP
PartitionName=gpu Nodes={",".join(NODES[2:])} MaxTime=24:00:00 State=UP
PartitionName=short Nodes={",".join(NODES)} MaxTime=00:10:00 State=UP
""")
        devices = [self.folder / "dev" / f"nvidia{number}" for number in (0, 1)]
        for device in devices:
            if not device.exists():
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))  # another /dev/null
        (etc / "gres.conf").write_text(
            f"NodeName={','.join(NODES[2:])} Name=gpu Type=a100 File={self.folder / 'dev'}/nvidia[0-1]\n"
        )
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        database = etc / "slurmdbd.conf"
        database.write_text(f"""\
AuthType=auth/munge
AuthInfo=socket={run / "munge.socket"}
DbdHost={self._host}
DbdAddr=127.0.0.1
DbdPort={self._port + 1}
SlurmUser=root
LogFile={log / "slurmdbd.log"}
PidFile={run / "slurmdbd.pid"}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self._port + 2}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
""")
        database.chmod(0o600)
        # The plugin's job step forgets SLURM_CONF, and this cluster's configuration is not in /etc.
        wrapper = self.folder / "bin" / "srun"
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={etc / "slurm.conf"} exec /usr/bin/srun "$@"\n')
        wrapper.chmod(0o755)


def wait_until(holds: Callable[[], bool], longest: float = _LONGEST_WAIT, every: float = 0.1) -> None:
    """Returns when something holds.

    Args:
        longest: seconds.
        every: seconds between two looks; longer for those that start a program.

    Raises:
        TimeoutError: it does not, for so many seconds.
    """
    deadline = time.monotonic() + longest
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {longest:.0f} s")
        time.sleep(every)


def _free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody listens on; two processes begin to look in different places."""
    blocks = list(range(20000, 60000, number))
    begin = os.getpid() % len(blocks)
    for first in blocks[begin:] + blocks[:begin]:
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
