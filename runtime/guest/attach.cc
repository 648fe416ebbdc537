// Connecting to the pager, making this process's userfaultfd, and doing both again in a forked
// child.
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/guest/agent.h"
#include "runtime/guest/client.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/cow.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/guest/views.h"
#include "runtime/uapi_compat.h"

namespace hostmm::guest {

// Constant-initialised: the hooks may be called before any constructor has run.
constinit ClientState g_client =
    {};  // all zero: no constructor, and pages that cost nothing untouched

namespace {

// Whether `list` (names separated by ':') holds `name`.
bool Listed(const char* list, const char* name) {
  const size_t length = strlen(name);
  for (const char* at = list; *at != '\0';) {
    const char* end = strchrnul(at, ':');
    if (static_cast<size_t>(end - at) == length && memcmp(at, name, length) == 0) return true;
    at = *end == ':' ? end + 1 : end;
  }
  return false;
}

int NewUserfaultfd() {
  const int flags = O_CLOEXEC | O_NONBLOCK;
  long fd = -EBADF;
  if (g_client.uffd_source == UffdSource::kSyscall) {
    fd = raw::Call(SYS_userfaultfd, flags);
  } else if (g_client.uffd_device.IsOurs()) {
    fd = raw::Call(SYS_ioctl, g_client.uffd_device.get(), USERFAULTFD_IOC_NEW, flags);
  }
  if (raw::Failed(fd)) return -1;
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = g_client.uffd_features;
  if (raw::Failed(raw::Call(SYS_ioctl, fd, UFFDIO_API, &api))) {
    raw::Call(SYS_close, fd);
    return -1;
  }
  return static_cast<int>(fd);
}

// Hands `uffd` (-1: none) over. The guest keeps no copy: when the pager dies,
// the last one closes and the kernel resolves what waits.
Io HandOver(protocol::Kind kind, int uffd, AgentStart agent) {
  protocol::Message attach = NewMessage(kind);
  attach.value[0] = agent == AgentStart::kStarted ? 1 : 0;
  attach.value[1] = kind == protocol::Kind::kChildAttach && g_client.regions.HasTracked() ? 1 : 0;
  const Io sent = Send(g_client.channel, attach, &uffd, uffd >= 0 ? 1 : 0, Credentials::kYes);
  if (uffd >= 0) raw::Call(SYS_close, uffd);
  return sent;
}

// A child of a raw clone(2) or _Fork has its parent's state, and its parent's channel: what it says
// there, the pager would do to the parent. (So has a vfork child that maps memory. That ends the
// attachment of the parent too, which is better than a wrong one.)
void LeaveIfClonedLocked() {
  if (g_client.phase != Phase::kAttached || g_client.pid == raw::Call(SYS_getpid)) return;
  GoOffLocked("it was forked without the handlers of fork");
}

// RETURNS whether the pager knows of the child.
bool AnnounceForkLocked() {
  int pair[2];
  if (raw::Failed(raw::Call(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, &pair[0]))) {
    return false;
  }
  const protocol::Message intent = NewMessage(protocol::Kind::kForkIntent);
  if (Send(g_client.channel, intent, &pair[1], 1) == Io::kOk) {
    g_client.child_channel = pair[0];
  } else {
    raw::Call(SYS_close, pair[0]);
  }
  raw::Call(SYS_close, pair[1]);
  return g_client.child_channel >= 0;
}

bool HasFrozenLocked() {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    if (g_client.regions[i].frozen) return true;
  }
  return false;
}

void BeforeFork() {
  SettleCowViews();
  g_client.lock.Lock();
  g_client.child_channel = -1;
  LeaveIfClonedLocked();
  if (g_client.phase != Phase::kAttached || g_client.regions.size() == 0) return;
  PrepareCowLocked();
  if (g_client.phase == Phase::kAttached && AnnounceForkLocked()) return;
  CancelCowForkLocked();
  // The child would write to frozen memory unseen: the pager must know that there is no snapshot.
  if (HasFrozenLocked()) return GoOffLocked("the pager could not be told of a fork");
  // And of memory that is to be frozen later, that somebody has it whom it does not know.
  NoteLocked(NewMessage(protocol::Kind::kForkIntent));
}

void AfterForkInParent() {
  EndCowForkLocked();
  // If there is no child after all, this was the last copy: the pager sees the end of the channel
  // and forgets it.
  if (g_client.child_channel >= 0) raw::Call(SYS_close, g_client.child_channel);
  g_client.child_channel = -1;
  g_client.lock.Unlock();
}

// Shared memory that is not registered for writes leaves its page-table entries behind at fork;
// that is a kindness of the kernel, and none to build on. RETURNS whether nothing that was
// inherited can be written unseen.
bool TrackInherited(int uffd, const Region& region) {
  if (Zap(region.va, region.bytes) == 0) return true;
  uffdio_writeprotect protect = {};
  protect.range = {region.va, region.bytes};
  protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  return !raw::Failed(raw::Call(SYS_ioctl, uffd, UFFDIO_WRITEPROTECT, &protect));
}

// RETURNS whether everything that must not go unseen is registered.
bool RegisterRegions(int uffd) {
  bool tracked = true;
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    if (region.kind == RegionKind::kAdopted || region.lost) continue;
    const bool tracks = region.frozen || IsView(region);
    uffdio_register request = {};
    request.range = {region.va, region.bytes};
    request.mode = tracks ? protocol::kTrackedModes : g_client.register_mode;
    // A refusal leaves this range to the kernel, in this process.
    const long result = raw::Call(SYS_ioctl, uffd, UFFDIO_REGISTER, &request);
    if (tracks && raw::Failed(result)) tracked = false;
    if (region.frozen) tracked = TrackInherited(uffd, region) && tracked;
  }
  return tracked;
}

// What only an agent, and a userfaultfd, can do for it.
bool NeedsAgentLocked() {
  return g_client.regions.HasOptIn() || g_client.regions.HasViews() || HasFrozenLocked();
}

// REQUIRES: the lock. The child's own attachment, on the channel that its parent has announced.
void AttachChildLocked(int channel) {
  g_client.pid = static_cast<int>(raw::Call(SYS_getpid));
  g_client.regions.DropDontFork();
  BecomeViewsLocked();
  if (channel < 0) return GoOffLocked("the pager could not be told of the fork");
  g_client.channel.Set(channel);
  const int uffd = g_client.uffd_source == UffdSource::kNone ? -1 : NewUserfaultfd();
  const bool tracked =
      uffd >= 0 ? RegisterRegions(uffd) : !g_client.regions.HasViews() && !HasFrozenLocked();
  FirstHold first;
  first.writes = HasFrozenLocked();
  if (first.writes || g_client.regions.HasViews()) first.uffd = uffd;
  const AgentStart agent = StartAgent(g_client.channel, first);
  // All others would wait for this process whenever they change a protection, or nobody would see
  // what it writes.
  if (!tracked || (agent == AgentStart::kRefused && NeedsAgentLocked())) {
    // Who goes without a word is dead; this one lives on and writes. Its writes wait until the
    // pager has read this, and the end of the channel, and nobody has a view any more that would
    // show them.
    HandOver(protocol::Kind::kChildAttach, uffd, AgentStart::kRefused);
    return GoOffLocked(tracked ? "it cannot have an agent thread" : "its memory cannot be watched");
  }
  if (HandOver(protocol::Kind::kChildAttach, uffd, agent) != Io::kOk) {
    return GoOffLocked("the pager is gone");
  }
}

// The threads that waited for answers are not in the child.
void CloseSocketsOfWaiters() {
  for (Waiter* waiter = g_client.waiters; waiter != nullptr; waiter = waiter->next) {
    raw::Call(SYS_close, waiter->reply_fd);
  }
  g_client.waiters = nullptr;
}

// The child has its parent's mappings but not the registration with a userfaultfd. It makes its
// own, registers, and hands it over without waiting for an answer: a fault that comes earlier than
// the pager simply waits.
void AfterForkInChild() {
  ForgetAgent();
  ForgetPackets();
  CloseSocketsOfWaiters();
  g_client.open_lock.Forget();
  g_client.replacing_agent = false;
  g_client.replace_again = false;
  const int channel = g_client.child_channel;
  g_client.child_channel = -1;
  g_client.channel.Close();
  if (g_client.phase == Phase::kAttached && g_client.regions.size() == 0) {
    // Nothing to look after: like a program that has not mapped anything yet.
    g_client.uffd_device.Close();
    g_client.phase = Phase::kCold;
  } else if (g_client.phase == Phase::kAttached) {
    AttachChildLocked(channel);
  } else if (g_client.regions.HasTracked()) {
    g_client.regions.DropDontFork();
    BecomeViewsLocked();
  }
  EndCowForkLocked();
  g_client.lock.Unlock();
}

Io AttachLocked() {
  g_client.pid = static_cast<int>(raw::Call(SYS_getpid));
  // What an earlier attachment has left is plain memory, of which this pager must not hear.
  for (size_t i = g_client.regions.size(); i-- > 0;) {
    const Region region = g_client.regions[i];
    if (!IsGonePrivate(region)) g_client.regions.Remove(region.va, region.bytes);
  }
  ++g_client.attachments;
  const int fd = Connect(g_client.socket_path);
  if (fd < 0) {
    g_client.attach_error = ECONNREFUSED;
    GoOffLocked("no pager at its socket");
    return Io::kFailed;
  }
  g_client.channel.Set(fd);
  ForgetPackets();
  protocol::Message hello = NewMessage(protocol::Kind::kHello);
  strncpy(hello.text, program_invocation_short_name, sizeof(hello.text) - 1);
  protocol::Message answer = {};
  int device = -1;
  if (AskLocked(hello, nullptr, 0, &answer, &device) != Io::kOk) {
    const bool other_build = answer.status == protocol::Status::kVersion;
    g_client.attach_error = other_build ? EPROTO : ECONNREFUSED;
    GoOffLocked("the pager refused");
    return Io::kFailed;
  }
  g_client.uffd_features = answer.value[0];
  g_client.register_mode = answer.value[1];
  g_client.uffd_source = UffdSource::kNone;
  if (answer.mode == static_cast<uint32_t>(protocol::Mode::kUffd)) {
    g_client.uffd_source = device >= 0 ? UffdSource::kDevice : UffdSource::kSyscall;
  }
  if (device >= 0) g_client.uffd_device.Set(device);
  int uffd = -1;
  if (g_client.uffd_source != UffdSource::kNone) {
    uffd = NewUserfaultfd();
    // Without one the guest runs as in native mode; the pager sees that none came.
    if (uffd < 0) g_client.uffd_source = UffdSource::kNone;
  }
  const AgentStart agent = StartAgent(g_client.channel);
  if (HandOver(protocol::Kind::kAttach, uffd, agent) != Io::kOk) {
    GoOffLocked("the pager is gone");
    return Io::kFailed;
  }
  return Io::kOk;
}

// From how many bytes on MAP_PRIVATE_COW memory is managed. The environment is for measuring what
// it costs below.
uint64_t CowMinimum() {
  const char* asked = secure_getenv("HOSTMM_COW_MIN_BYTES");
  const unsigned long long bytes = asked != nullptr ? strtoull(asked, nullptr, 10) : 0;
  return bytes != 0 ? bytes : protocol::kMinRegionBytes;
}

}  // namespace

void Initialize() {
  // (A set-uid program that is linked with the library does not take a pager from its caller.)
  const char* socket = secure_getenv("HOSTMM_SOCKET");
  const char* only = getenv("HOSTMM_ONLY");
  g_client.child_channel = -1;
  g_client.quiet = getenv("HOSTMM_QUIET") != nullptr;
  const bool chosen =
      only == nullptr || only[0] == '\0' || Listed(only, program_invocation_short_name);
  g_client.cow_min_bytes = CowMinimum();
  g_client.standard_error.Watch(STDERR_FILENO);
  const size_t length = socket != nullptr ? strlen(socket) : 0;
  if (length == 0 || length >= sizeof(g_client.socket_path) || !chosen) {
    // Until hostmm_open says otherwise.
    g_client.phase = Phase::kOff;
  } else {
    strcpy(g_client.socket_path, socket);
    g_client.transparent = true;
  }
  // Before the program registers handlers of its own (as far as a constructor can): ours then run
  // last before fork and first after it. Were the lock taken earlier, a handler that waits for a
  // lock of the program would wait for ever, if that lock's holder is in one of our hooks.
  pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild);
}

bool EnsureAttachedLocked() {
  LeaveIfClonedLocked();
  if (g_client.phase == Phase::kAttached) return true;
  if (g_client.phase == Phase::kOff || g_client.socket_path[0] == '\0') return false;
  if (AttachLocked() != Io::kOk) return false;
  g_client.phase.store(Phase::kAttached, std::memory_order_release);
  return true;
}

// Ends the agent and starts another, with what the calling thread has now.
void ReplaceAgent() {
  {
    GuestLockHolder hold(g_client.lock);
    NoteLocked(NewMessage(protocol::Kind::kAgent));
    if (g_client.phase != Phase::kAttached) return;
  }
  // Without the lock: the agent may want it for the order that it is carrying out.
  const AgentEnd end = AwaitAgentEnd();
  GuestLockHolder hold(g_client.lock);
  if (g_client.phase != Phase::kAttached) return;
  if (end == AgentEnd::kStillThere) return GoOffLocked("its agent does not end");
  protocol::Message note = NewMessage(protocol::Kind::kAgent);
  const AgentStart agent = StartAgent(g_client.channel);
  if (agent == AgentStart::kRefused && NeedsAgentLocked()) {
    return GoOffLocked("it cannot have an agent thread any more");
  }
  note.value[0] = agent == AgentStart::kStarted ? 1 : 0;
  NoteLocked(note);
}

// One thread at a time replaces the agent, which has one stack. Another that comes meanwhile leaves
// word, because the new agent may have been started before its change.
void CredentialsChanged() {
  // A vfork child has its parent's memory, and with it lock and state, but no agent to replace; nor
  // has a raw clone.
  if (CurrentPhase() == Phase::kAttached && g_client.pid != raw::Call(SYS_getpid)) return;
  {
    GuestLockHolder hold(g_client.lock);
    LeaveIfClonedLocked();
    if (g_client.phase != Phase::kAttached) return;
    g_client.replace_again = g_client.replacing_agent;
    if (g_client.replacing_agent) return;
    g_client.replacing_agent = true;
  }
  for (bool again = true; again;) {
    ReplaceAgent();
    GuestLockHolder hold(g_client.lock);
    again = g_client.replace_again;
    g_client.replace_again = false;
    g_client.replacing_agent = again;
  }
}

void GoOffLocked(const char* why) {
  // Closing does not wake the agent, the end of the stream does. Not in a raw clone, whose channel
  // is its parent's.
  const bool cloned = g_client.pid != raw::Call(SYS_getpid);
  // Before the pager hears of the end, and lets others write what views share. The agent does the
  // same, and may come first.
  LoseViewsLocked(cloned ? DontForkViews::kAreNotHere : DontForkViews::kLose);
  if (g_client.channel.IsOurs() && !cloned) {
    raw::Call(SYS_shutdown, g_client.channel.get(), SHUT_RDWR);
  }
  g_client.channel.Close();
  g_client.uffd_device.Close();
  g_client.phase.store(Phase::kOff, std::memory_order_release);
  GoPrivateLocked();
  g_client.regions.MakePlain();
  SayOnce("goes on without hostmm", why);
}

void Leave() {
  {
    GuestLockHolder hold(g_client.lock);
    const bool quiet = g_client.quiet;
    g_client.quiet = true;  // it is as the program wants it
    GoOffLocked("closed");
    g_client.quiet = quiet;
  }
  // Its stack is the next agent's.
  AwaitAgentEnd();
}

void NoteLocked(const protocol::Message& note) {
  LeaveIfClonedLocked();
  if (g_client.phase != Phase::kAttached) return;
  if (Send(g_client.channel, note, nullptr, 0) != Io::kOk) GoOffLocked("the pager is gone");
}

Io AskLocked(const protocol::Message& question, const int* fds, int fd_count,
             protocol::Message* answer, int* received) {
  LeaveIfClonedLocked();
  if (Ask(g_client.channel, question, fds, fd_count, answer, received) != Io::kOk) {
    GoOffLocked("the pager is gone or does not answer");
    return Io::kFailed;
  }
  if (answer->status == protocol::Status::kOk) return Io::kOk;
  answer->text[sizeof(answer->text) - 1] = '\0';
  if (received != nullptr && *received >= 0) raw::Call(SYS_close, *received);
  // kFailed is an answer to a caller who gets the errno.
  if (answer->status != protocol::Status::kFailed)
    SayOnce("a mapping is not managed", answer->text);
  return Io::kFailed;
}

Io AskQuietlyLocked(const protocol::Message& question, const int* fds, int fd_count,
                    protocol::Message* answer, int* received) {
  const bool quiet = g_client.quiet;
  g_client.quiet = true;
  const Io got = AskLocked(question, fds, fd_count, answer, received);
  g_client.quiet = quiet;
  return got;
}

int ErrnoOf(const protocol::Message& answer) {
  switch (answer.status) {
    case protocol::Status::kOk:
      return 0;
    case protocol::Status::kFailed:
      return answer.value[1] != 0 ? static_cast<int>(answer.value[1]) : EIO;
    case protocol::Status::kRefused:
      return answer.value[1] != 0 ? static_cast<int>(answer.value[1]) : EINVAL;
    case protocol::Status::kNoFrames:
      return ENOMEM;
    case protocol::Status::kFull:
      return answer.value[1] != 0 ? static_cast<int>(answer.value[1]) : ENOSPC;
    case protocol::Status::kNotPermitted:
      return EPERM;
    case protocol::Status::kVersion:
      return EPROTO;
  }
  return EIO;
}

void SayOnce(const char* what, const char* why) {
  // Programs close standard error and get its number for a file of their own.
  if (g_client.quiet || g_client.said_why || !g_client.standard_error.IsOurs()) return;
  g_client.said_why = true;
  char line[256];
  size_t used = 0;
  const char* const parts[] = {"hostmm: ", program_invocation_short_name, ": ", what, ": ", why,
                               "\n"};
  for (const char* part : parts) {
    const size_t length = strlen(part);
    if (used + length > sizeof(line)) break;
    memcpy(line + used, part, length);
    used += length;
  }
  raw::Call(SYS_write, STDERR_FILENO, &line[0], used);
}

}  // namespace hostmm::guest
