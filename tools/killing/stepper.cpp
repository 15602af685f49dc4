// Runs another process one instruction at a time, and kills it after the n-th one that counts.
//
// An instruction counts while the process is in a call of the native module: from the first instruction in the
// module's mapping until the return from the function that was entered there, with all it calls in libc, the vDSO
// and the kernel, but without the interpreter's own code when it calls back there. So the n-th instruction is the
// same one in every process that is forked from the same parent, but for what depends on a clock.
//
// An *effect* is such an instruction after which the ring's bytes are others than before, or a system call: only
// these can make a difference to those who live on.
//
// Between two native calls the process runs at full speed: the module's code is not executable then, and the fault at
// its first instruction is where the call begins.
//
// x86-64 only: elsewhere a step between load-exclusive and store-exclusive makes atomics fail forever.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

#if !defined(__x86_64__)
#error "only x86-64 can be stepped through its atomics"
#endif

using u64 = std::uint64_t;

namespace {

constexpr u64 kSyscall = 0x050f;  // the two bytes of the instruction, as a little-endian number

enum Outcome : int {
    kKilled = 0,    // where it was to be
    kFinished = 1,  // it stopped itself: the operation is complete
    kDied = 2,      // of its own accord: `status` is waitpid's
    kRefused = 3,   // by ptrace: `status` is errno
    kEndless = 4,   // it got nowhere within `most_steps` instructions
    kGoesOn = -1,   // not told: all is as expected so far
};

}  // namespace

extern "C" {

struct Range {
    u64 begin, end;
};

// What the caller wants. Addresses are those of the traced process.
struct Plan {
    const Range* native;
    const Range* interpreter;
    const Range* code;  // all of it
    int natives, interpreters, codes;
    u64 instructions;  // kill it after so many of them,
    u64 effects;       // or after so many of these
    u64 most_steps;
    const char* ring;  // file, looked for at each native call until it is there; null: effects do not matter
};

struct Report {
    u64 instructions;  // executed in native calls
    u64 effects;       // of them
    u64 calls;         // native calls begun
    u64 ip;            // where it was killed: the instruction that was not executed any more
    int status;
};

// In the process to be traced: stops until the tracer continues it. => 0, or errno.
int stand_by(int first) {
    if (first && ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) return errno;
    return raise(SIGSTOP) == 0 ? 0 : errno;
}

// Waits until a child stands by for the first time. => true. => false: it ended, `status` is waitpid's.
bool meet(pid_t pid, int* status) {
    if (waitpid(pid, status, __WALL) != pid || !WIFSTOPPED(*status)) return false;
    // Whatever happens to the tracer, nobody is left standing.
    return ptrace(PTRACE_SETOPTIONS, pid, nullptr, PTRACE_O_EXITKILL) == 0;
}

}  // extern "C"

namespace {

class Stepper {
public:
    Stepper(pid_t pid, const Plan& plan, Report& report) : pid_(pid), plan_(plan), report_(report) {}
    ~Stepper() {
        if (ring_) munmap(const_cast<unsigned char*>(ring_), shadow_.size());
    }
    Stepper(const Stepper&) = delete;
    Stepper& operator=(const Stepper&) = delete;

    Outcome run() {
        report_ = {};
        look();
        syscall_ = ip_ - 2;  // it stopped itself in one
        if (!at_syscall(syscall_) || !permit(false)) return refused();
        while (report_.instructions < plan_.most_steps) {
            if (!inside_) {
                if (const Outcome o = fly(); o != kGoesOn) return o;
                continue;
            }
            if (report_.instructions == plan_.instructions || report_.effects == plan_.effects) {
                report_.ip = ip_;
                return destroy() ? kKilled : refused();
            }
            const bool counts = !among(ip_, plan_.interpreter, plan_.interpreters);
            const bool calls_kernel = counts && plan_.ring && at_syscall(ip_);
            if (const Outcome o = move(PTRACE_SINGLESTEP, SIGTRAP); o != kGoesOn) return o;
            if (counts) {
                ++report_.instructions;
                if (plan_.ring && (changed() || calls_kernel)) ++report_.effects;
            }
            if (ip_ == back_ && user(offsetof(user_regs_struct, rsp)) == depth_) {
                inside_ = false;
                if (!permit(false)) return refused();
            }
        }
        return kEndless;
    }

private:
    static bool among(u64 ip, const Range* ranges, int n) {
        for (int i = 0; i < n; ++i)
            if (ip >= ranges[i].begin && ip < ranges[i].end) return true;
        return false;
    }
    u64 user(std::size_t offset) const { return static_cast<u64>(ptrace(PTRACE_PEEKUSER, pid_, offset, nullptr)); }
    bool peek(u64 address, u64& word) const {
        errno = 0;
        word = static_cast<u64>(ptrace(PTRACE_PEEKTEXT, pid_, address, nullptr));
        return errno == 0;
    }
    Outcome refused() {
        report_.status = errno;
        return kRefused;
    }
    bool at_syscall(u64 ip) const {
        u64 word = 0;
        if (among(ip, plan_.code, plan_.codes))  // it is a fork of us: the same code in the same place
            std::memcpy(&word, reinterpret_cast<const void*>(ip), 2);
        else if (!peek(ip, word))
            return false;
        return (word & 0xffff) == kSyscall;
    }
    void look() { ip_ = user(offsetof(user_regs_struct, rip)); }
    // Lets it go on, until it stops with the `expected` signal. => kGoesOn: it did. => what else happened.
    Outcome move(__ptrace_request how, int expected) {
        if (ptrace(how, pid_, nullptr, nullptr) != 0) return refused();
        if (waitpid(pid_, &report_.status, __WALL) != pid_) return refused();
        if (!WIFSTOPPED(report_.status)) return kDied;
        look();
        if (WSTOPSIG(report_.status) == expected) return kGoesOn;
        if (WSTOPSIG(report_.status) == SIGSTOP) return kFinished;
        report_.ip = ip_;
        return kDied;
    }
    // To the next native call. => kGoesOn: it is in one.
    Outcome fly() {
        if (const Outcome o = move(PTRACE_CONT, SIGSEGV); o != kGoesOn) return o;
        if (!among(ip_, plan_.native, plan_.natives)) {
            report_.ip = ip_;
            return kDied;
        }
        if (plan_.ring && !ring_ && !find_ring()) return refused();
        return permit(true) && enter() ? kGoesOn : refused();
    }
    // Makes it call mprotect(): shall it be able to execute the native module?
    bool permit(bool execute) {
        user_regs_struct before;
        if (ptrace(PTRACE_GETREGS, pid_, nullptr, &before) != 0) return false;
        for (int i = 0; i < plan_.natives; ++i) {
            user_regs_struct r = before;
            r.rip = syscall_;
            r.rax = SYS_mprotect;
            r.orig_rax = ~0ULL;
            r.rdi = plan_.native[i].begin;
            r.rsi = plan_.native[i].end - plan_.native[i].begin;
            r.rdx = PROT_READ | (execute ? PROT_EXEC : 0);
            int status;
            if (ptrace(PTRACE_SETREGS, pid_, nullptr, &r) != 0 ||
                ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr) != 0 || waitpid(pid_, &status, __WALL) != pid_ ||
                !WIFSTOPPED(status) || ptrace(PTRACE_GETREGS, pid_, nullptr, &r) != 0)
                return false;
            if (r.rax != 0) {
                errno = static_cast<int>(-r.rax);
                return false;
            }
        }
        return ptrace(PTRACE_SETREGS, pid_, nullptr, &before) == 0;
    }
    bool changed() {
        if (!ring_ || std::memcmp(shadow_.data(), ring_, shadow_.size()) == 0) return false;
        std::memcpy(shadow_.data(), ring_, shadow_.size());
        return true;
    }
    // Finds the ring, if it is there. => false: it cannot be looked at.
    bool find_ring() {
        const int fd = open(plan_.ring, O_RDONLY | O_CLOEXEC);
        if (fd < 0) return errno == ENOENT;
        struct stat file;
        void* memory = MAP_FAILED;
        if (fstat(fd, &file) == 0 && file.st_size > 0)
            memory = mmap(nullptr, static_cast<std::size_t>(file.st_size), PROT_READ, MAP_SHARED, fd, 0);
        close(fd);
        if (memory == MAP_FAILED) return file.st_size == 0;
        ring_ = static_cast<const unsigned char*>(memory);
        shadow_.assign(ring_, ring_ + file.st_size);
        return true;
    }
    // Kills it where it stands, and waits until the kernel has taken everything from it.
    bool destroy() {
        if (kill(pid_, SIGKILL) != 0) return false;
        do {
            if (waitpid(pid_, &report_.status, __WALL) != pid_) return false;
        } while (WIFSTOPPED(report_.status));
        return true;
    }
    // A native call begins. What is on top of the stack is where it returns to.
    bool enter() {
        inside_ = true;
        ++report_.calls;
        const u64 sp = user(offsetof(user_regs_struct, rsp));
        depth_ = sp + 8;
        return peek(sp, back_);
    }

    pid_t pid_;
    const Plan& plan_;
    Report& report_;
    u64 ip_ = 0;
    bool inside_ = false;  // a native call,
    u64 back_ = 0;         // which returns to here
    u64 depth_ = 0;        // with this stack pointer
    const unsigned char* ring_ = nullptr;
    std::vector<unsigned char> shadow_;  // its bytes after the last instruction
    u64 syscall_ = 0;                    // where there is such an instruction
};

}  // namespace

// Lets a child that stands by go on, and kills it as planned. => an Outcome.
extern "C" int run(pid_t pid, const Plan* plan, Report* report) { return Stepper(pid, *plan, *report).run(); }
