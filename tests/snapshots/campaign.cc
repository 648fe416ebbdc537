#include "tests/snapshots/campaign.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/snapshots/tickets.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

// Violations that are printed.
constexpr size_t kPrinted = 5;
// Views that are kept while the writers go on.
constexpr size_t kMostKept = 3;
// Tickets that a process writes before it forks one that writes as many.
constexpr int kTicketsOfALife = 400;

struct Shared {
  Tickets tickets;
  std::atomic<size_t> begun = 0;  // writers
  std::atomic<bool> stop = false;
};

class Writers {
 public:
  Writers(const CampaignTerms& terms, const Live& live, Shared* shared) : shared_(shared) {
    for (size_t i = 0; i < terms.processes; ++i) {
      const pid_t pid = fork();
      MUST(pid >= 0);
      if (pid == 0) {
        // Its children are in its group: they end with it.
        setpgid(0, 0);
        Run(terms, live.at(), i);
      }
      pids_.push_back(pid);
    }
  }
  ~Writers() {
    for (const pid_t pid : pids_) {
      kill(-pid, SIGKILL);
      kill(pid, SIGKILL);
    }
    for (const pid_t pid : pids_) waitpid(pid, nullptr, 0);
  }
  // RETURNS whether all have ended well.
  bool Stop() {
    shared_->stop = true;
    bool well = true;
    for (const pid_t pid : pids_) well = WaitFor(pid) == 0 && well;
    pids_.clear();
    return well;
  }

 private:
  [[noreturn]] void Run(const CampaignTerms& terms, char* at, size_t number) const {
    // A campaign that gives up leaves nobody behind.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ++shared_->begun;
    std::minstd_rand random(static_cast<unsigned>(terms.seed * 100 + number));
    const bool stays = terms.writers == CampaignTerms::Writers::kStay;
    const auto write = [&](int count) {
      for (int i = 0; (i < count || stays) && !shared_->stop; ++i) {
        shared_->tickets.Write(at, random() % kChains);
      }
    };
    while (!shared_->stop) {
      write(kTicketsOfALife);
      if (stays) break;
      const pid_t child = fork();
      MUST(child >= 0);
      if (child == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
      write(kTicketsOfALife);
      if (child == 0) _exit(0);
      int status = 0;
      MUST(waitpid(child, &status, 0) == child);
      if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) _exit(1);
    }
    _exit(0);
  }

  Shared* const shared_;
  std::vector<pid_t> pids_;
};

struct Kept {
  std::unique_ptr<Snapshot> snapshot;
  std::unique_ptr<View> view;
  Tickets::Counts least;
  Tickets::Counts most;
};

class Campaign {
 public:
  explicit Campaign(const CampaignTerms& terms)
      : terms_(terms),
        live_(kTicketBytes),
        shared_(SharedCounters<Shared>()),
        random_(static_cast<unsigned>(terms.seed)) {}

  CampaignResult Run() {
    Writers writers(terms_, live_, shared_);
    const Tickets::Counts none = {};
    MUST(Eventually(
        [&] { return shared_->begun == terms_.processes && shared_->tickets.Written() != none; }));
    while (result_.taken < terms_.snapshots) {
      AwaitSomeTickets();
      Take();
      // Sometimes none is left: the region thaws.
      const size_t keep = random_() % (kMostKept + 1);
      while (kept_.size() > keep) JudgeAndDrop();
    }
    while (!kept_.empty()) JudgeAndDrop();
    if (result_.refused > result_.taken / 10) Violation("%zu were refused", result_.refused);
    if (!writers.Stop()) Violation("a writer did not end well");
    const Tickets::Counts end = shared_->tickets.Written();
    const char* wrong = shared_->tickets.Judge(live_.at(), end, end, Tickets::Halves::kWhole);
    if (*wrong != 0) Violation("the live region in the end: %s", wrong);
    for (const uint64_t count : end) result_.tickets += count;
    return result_;
  }

 private:
  template <class... Arguments>
  void Violation(const char* format, Arguments... arguments) {
    char line[200];
    if constexpr (sizeof...(arguments) == 0) {
      snprintf(line, sizeof(line), "%s", format);
    } else {
      snprintf(line, sizeof(line), format, arguments...);
    }
    if (++result_.violations <= kPrinted) {
      Say("violation: snapshot %zu: %s", result_.taken, line);
    }
  }

  // Until a random number of tickets more is written, of one chain.
  void AwaitSomeTickets() {
    const size_t chain = random_() % kChains;
    const uint64_t until = shared_->tickets.Written()[chain] + random_() % 100;
    MUST(Eventually([&] { return shared_->tickets.Written()[chain] >= until; }));
  }

  void Take() {
    Kept kept;
    const bool between = terms_.moment == CampaignTerms::Moment::kBetween;
    if (between) shared_->tickets.LockAll();
    kept.least = shared_->tickets.Written();
    kept.snapshot = terms_.writers == CampaignTerms::Writers::kComeAndGo
                        ? std::make_unique<Snapshot>(live_.at(), &result_.refused)
                        : std::make_unique<Snapshot>(live_.at());
    kept.most = shared_->tickets.Written();
    if (between) shared_->tickets.UnlockAll();
    ++result_.taken;
    kept.view = std::make_unique<View>(*kept.snapshot);
    // One that is read late is as good as one that is read at once.
    if (random_() % 4 != 0) Judge(kept, "at once");
    kept_.push_back(std::move(kept));
  }

  void Judge(const Kept& kept, const char* when) {
    const bool view = terms_.judged == CampaignTerms::Judged::kView;
    const bool between = terms_.moment == CampaignTerms::Moment::kBetween;
    const char* wrong =
        shared_->tickets.Judge(view ? kept.view->at() : live_.at(), kept.least, kept.most,
                               between ? Tickets::Halves::kWhole : Tickets::Halves::kMayBe);
    if (*wrong != 0) Violation("%s: %s", when, wrong);
    const std::string condition = kept.snapshot->Condition();
    if (condition != "ok")
      Violation("%s: it is lost: %s: %s", when, condition.c_str(), hostmm_error());
  }

  void JudgeAndDrop() {
    // Any one.
    const size_t i = random_() % kept_.size();
    Judge(kept_[i], "when more was written");
    kept_.erase(kept_.begin() + static_cast<ptrdiff_t>(i));
  }

  const CampaignTerms terms_;
  Live live_;
  Shared* const shared_;
  std::minstd_rand random_;
  std::deque<Kept> kept_;
  CampaignResult result_;
};

}  // namespace

size_t SnapshotsOr(size_t normally) {
  const char* text = getenv("HOSTMM_SNAPSHOTS");
  return text != nullptr ? strtoull(text, nullptr, 10) : normally;
}

CampaignResult RunCampaign(const CampaignTerms& terms) { return Campaign(terms).Run(); }

}  // namespace hostmm::test
