#include "tests/oracle/stepper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <variant>

#include "tests/oracle/actor.h"

namespace hostmm::oracle {
namespace {

using Clock = std::chrono::steady_clock;

// The longest operation takes milliseconds; a machine that does other work takes longer.
constexpr auto kPatience = std::chrono::seconds(20);
// How late the death of an actor in the middle of an operation may be noticed.
constexpr auto kGlance = std::chrono::milliseconds(100);

// What the oracle itself needs.
void Need(bool condition, const char* what) {
  if (condition) return;
  perror(what);
  exit(3);
}

int SmallFile(const char* name) {
  constexpr uint64_t kWords = 4 * kPage / sizeof(uint64_t);
  const int fd = memfd_create(name, MFD_CLOEXEC);
  Need(fd >= 0, "memfd_create");
  for (uint64_t i = 0; i < kWords; ++i) {
    const uint64_t word = (i + 1) * 6364136223846793005u;  // arbitrary, but not zero
    Need(write(fd, &word, sizeof(word)) == sizeof(word), "write");
  }
  return fd;
}

int UnnamedFile(const ObjectSpec& spec) {
  if (spec.kind == kMemfd) return memfd_create("oracle", MFD_CLOEXEC);
  return open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

bool HasEnded(int pidfd, int timeout_ms) {
  pollfd wait = {pidfd, POLLIN, 0};
  return poll(&wait, 1, timeout_ms) == 1;
}

}  // namespace

Stepper::Stepper(Wrong wrong) : end_fds_(kMostActors, -1) {
  void* const memory =
      mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Need(memory != MAP_FAILED, "mmap");
  control_ = new (memory) Control{};
  control_->stepper = getpid();
  control_->source_fd = SmallFile("source");
  control_->sink_fd = SmallFile("sink");
  control_->wrong = wrong;
  // Nobody waits for the actors: they are gone when they have ended. The forks of forks too.
  signal(SIGCHLD, SIG_IGN);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
}

Stepper::~Stepper() {
  for (uint32_t actor = 0; actor < kMostActors; ++actor) {
    if (!control_->boxes[actor].alive) continue;
    kill(control_->boxes[actor].pid, SIGKILL);
    AwaitEnd(actor);
  }
}

std::vector<Observation> Stepper::Run(const Program& program) {
  control_->known = program.known;
  for (const ObjectSpec& spec : program.objects) MakeObject(spec);
  const uint32_t actors = std::clamp<uint32_t>(program.actors, 1, kMostActors);
  for (uint32_t actor = 0; actor < actors; ++actor) StartActor(actor);
  std::vector<Observation> seen;
  for (const Operation& operation : program.operations) {
    seen.push_back(Step(operation, static_cast<uint32_t>(seen.size())));
    const Outcome outcome = seen.back().outcome;
    if (outcome == Outcome::kDied || outcome == Outcome::kHung) break;
  }
  return seen;
}

void Stepper::MakeObject(const ObjectSpec& spec) {
  if (control_->object_count == kMostObjects) return;
  Object& object = control_->objects[control_->object_count++];
  object = {spec.kind, -1, -1, -1, (spec.bytes + kPage - 1) / kPage};
  if (spec.kind == kSysV) {
    object.shmid = shmget(IPC_PRIVATE, spec.bytes, IPC_CREAT | 0600);
    Need(object.shmid >= 0, "shmget");
    // Attached by a raw call, which makes no guest of this process, the segment lives as long as
    // it does.
    Need(syscall(SYS_shmat, object.shmid, nullptr, 0) != -1, "shmat");
    Need(shmctl(object.shmid, IPC_RMID, nullptr) == 0, "shmctl");
    return;
  }
  object.fd = UnnamedFile(spec);
  Need(object.fd >= 0 && ftruncate(object.fd, spec.bytes) == 0, "an object");
  const std::string path = "/proc/self/fd/" + std::to_string(object.fd);
  object.read_only_fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  Need(object.read_only_fd >= 0, "an object, read-only");
}

void Stepper::StartActor(uint32_t number) {
  Mailbox& box = control_->boxes[number];
  const pid_t pid = fork();
  Need(pid >= 0, "fork");
  if (pid == 0) Actor(control_, number).Serve();
  box.pid = pid;
  box.alive = true;
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    box.slots[slot] = {kWindows + slot * kWindowBytes, 0, 0, false};
  }
  end_fds_[number] = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  Need(end_fds_[number] >= 0, "pidfd_open");
}

Observation Stepper::Step(const Operation& operation, uint32_t sequence) {
  const uint32_t actor = Living(ActorOf(operation));
  Mailbox& box = control_->boxes[actor];
  box.operation = operation;
  box.sequence = sequence;
  box.other = actor;
  const Observation skipped = {.outcome = Outcome::kSkipped};
  if (std::holds_alternative<ForkOp>(operation)) return StepFork(box);
  if (std::holds_alternative<ExitOp>(operation)) {
    if (CountLiving() == 1) return skipped;
    SetTurn(box, kActor);
    AwaitEnd(actor);
    return {};
  }
  if (const auto* peek = std::get_if<PeekOp>(&operation)) box.other = Living(peek->other);
  if (const auto* poke = std::get_if<PokeOp>(&operation)) box.other = Living(poke->other);
  const auto* kill = std::get_if<KillOp>(&operation);
  if (kill != nullptr) {
    box.other = Living(kill->other);
    if (box.other == actor) return skipped;
  }
  SetTurn(box, kActor);
  const Observation seen = Answer(actor);
  if (kill != nullptr && seen.outcome == Outcome::kOk) AwaitEnd(box.other);
  return seen;
}

Observation Stepper::StepFork(Mailbox& box) {
  uint32_t child = 0;
  while (child < kMostActors && control_->boxes[child].alive) ++child;
  if (child == kMostActors) return {.outcome = Outcome::kSkipped};
  Mailbox& box_of_child = control_->boxes[child];
  box_of_child.pid = 0;
  box_of_child.turn = kActor;
  box.other = child;
  SetTurn(box, kActor);
  const Observation seen = Answer(static_cast<uint32_t>(&box - control_->boxes));
  if (seen.outcome != Outcome::kOk) return seen;
  end_fds_[child] = static_cast<int>(syscall(SYS_pidfd_open, box_of_child.pid, 0));
  Need(end_fds_[child] >= 0, "pidfd_open of a forked child");
  box_of_child.alive = true;
  return Answer(child);
}

void Stepper::AwaitEnd(uint32_t actor) {
  Mailbox& box = control_->boxes[actor];
  const auto patience = std::chrono::duration_cast<std::chrono::milliseconds>(kPatience);
  Need(HasEnded(end_fds_[actor], static_cast<int>(patience.count())), "an actor that does not end");
  close(end_fds_[actor]);
  end_fds_[actor] = -1;
  box.alive = false;
  box.turn = kStepper;
}

Observation Stepper::Answer(uint32_t actor) {
  Mailbox& box = control_->boxes[actor];
  const auto until = Clock::now() + kPatience;
  while (!Await(box, kStepper, kGlance)) {
    if (HasEnded(end_fds_[actor], 0)) return {.outcome = Outcome::kDied};
    if (Clock::now() > until) return {.outcome = Outcome::kHung};
  }
  return box.seen;
}

uint32_t Stepper::Living(uint32_t name) const {
  name %= CountLiving();
  uint32_t actor = 0;
  for (;; ++actor) {
    if (control_->boxes[actor].alive && name-- == 0) return actor;
  }
}

uint32_t Stepper::CountLiving() const {
  uint32_t count = 0;
  for (const Mailbox& box : control_->boxes) count += box.alive ? 1 : 0;
  return count;
}

}  // namespace hostmm::oracle
