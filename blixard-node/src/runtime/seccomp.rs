//! The seccomp profile of every container: what Docker's default profile allows a container that
//! has Docker's default capabilities, on x86-64 and 64-bit ARM.
//!
//! A system call that no rule names fails with `EPERM`. The rules were taken from Docker's
//! documentation of its default profile; calls that it ties to capabilities no container here has
//! (mounting, modules, tracing of other users, setting clocks) are therefore absent, and so is
//! `io_uring`, which newer releases of Docker withdrew. Names that an older libseccomp does not
//! know are skipped by runc.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 \
    faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
    fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
    ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown lchown32 link linkat _llseek lseek lstat \
    lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv \
    preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 \
    rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx symlink symlinkat sync \
    sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 \
    utimes vmsplice write writev";

const ATTRIBUTES: &str = "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr \
    listxattrat llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat";

const WAITING: &str = "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit \
    _newselect pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64";

const MEMORY: &str = "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock \
    mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free \
    pkey_mprotect process_mrelease remap_file_pages";

const PROCESSES: &str = "alarm capget capset execve execveat exit exit_group fork futex futex_requeue \
    futex_time64 futex_wait futex_waitv futex_wake getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 \
    getgroups getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid \
    getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid get_thread_area gettid \
    getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self pause pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv \
    process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity \
    sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler \
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
    setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid \
    setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid set_thread_area set_tid_address setuid \
    setuid32 sigaltstack sigprocmask sigreturn sysinfo tgkill tkill ugetrlimit uname uretprobe vfork wait4 \
    waitid waitpid";

const CLOCKS: &str = "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 gettimeofday nanosleep time timer_create \
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times";

const TALKING: &str = "accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr \
    mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink \
    msgctl msgget msgrcv msgsnd recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop \
    semtimedop semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown \
    socketcall socketpair";

/// Allowed to those who may change their root, which the default capabilities include.
const CHROOT: &str = "chroot";

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "arch_prctl modify_ldt";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str =
    "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: &str = "";

/// The flags of clone(2) that make namespaces, all but `CLONE_NEWTIME`: those need `CAP_SYS_ADMIN`.
const CLONE_NEW_NAMESPACES: u64 = 0x7E02_0000;
/// `AF_VSOCK`: the way to the hypervisor.
const AF_VSOCK: u64 = 40;
/// Linux, Linux with a 32-bit uname, both also without address randomisation changes, and "ask only".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

/// Builds the profile.
pub(crate) fn profile() -> Result<LinuxSeccomp, OciSpecError> {
    let mut rules = Vec::new();
    for group in [FILES, ATTRIBUTES, WAITING, MEMORY, PROCESSES, CLOCKS, TALKING, CHROOT, ARCHITECTURE] {
        let names: Vec<String> = group.split_whitespace().map(str::to_owned).collect();
        if !names.is_empty() {
            rules.push(allow(names).build()?);
        }
    }
    rules.push(allow_if("socket", argument(0, AF_VSOCK, None, LinuxSeccompOperator::ScmpCmpNe)?)?);
    for personality in PERSONALITIES {
        rules
            .push(allow_if("personality", argument(0, personality, None, LinuxSeccompOperator::ScmpCmpEq)?)?);
    }
    rules.push(allow_if(
        "clone",
        argument(0, CLONE_NEW_NAMESPACES, Some(0), LinuxSeccompOperator::ScmpCmpMaskedEq)?,
    )?);
    // Its flags are behind a pointer, out of the filter's reach: the C library then uses clone.
    rules.push(
        LinuxSyscallBuilder::default()
            .names(vec!["clone3".to_owned()])
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(ENOSYS)
            .build()?,
    );
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures())
        .syscalls(rules)
        .build()
}

fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    }
}

fn allow(names: Vec<String>) -> LinuxSyscallBuilder {
    LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow)
}

fn allow_if(name: &str, argument: LinuxSeccompArg) -> Result<LinuxSyscall, OciSpecError> {
    allow(vec![name.to_owned()]).args(vec![argument]).build()
}

fn argument(
    index: usize,
    value: u64,
    value_two: Option<u64>,
    operator: LinuxSeccompOperator,
) -> Result<LinuxSeccompArg, OciSpecError> {
    let argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(operator);
    match value_two {
        Some(value_two) => argument.value_two(value_two).build(),
        None => argument.build(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::profile;

    #[test]
    fn profile_allows_the_everyday_and_refuses_the_privileged() {
        let profile = profile().expect("the profile is complete");
        let mut allowed = BTreeSet::new();
        for rule in profile.syscalls().as_ref().expect("rules") {
            for name in rule.names() {
                allowed.insert(name.as_str());
            }
        }
        for name in ["read", "openat", "execve", "clone", "socket", "chroot", "futex", "statx", "rseq"] {
            assert!(allowed.contains(name), "{name}");
        }
        for name in ["mount", "umount2", "unshare", "setns", "bpf", "keyctl", "init_module", "io_uring_setup"]
        {
            assert!(!allowed.contains(name), "{name}");
        }
        assert!(allowed.len() > 350, "{}", allowed.len());
    }
}
