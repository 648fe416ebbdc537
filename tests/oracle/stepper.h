// tests/oracle/stepper.h
//
// Runs one program in processes of its own, one operation at a time, and collects what was seen.
//
// Owner:    makes the objects (without a name from the start, so that nothing can be left behind),
//           forks the first actors, and ends all of them.
// Threads:  one. It maps nothing that hostmm manages, and so is no guest itself.
// Errors:   an actor that dies or hangs is an observation and ends the run.
#ifndef HOSTMM_TESTS_ORACLE_STEPPER_H_
#define HOSTMM_TESTS_ORACLE_STEPPER_H_

#include <vector>

#include "tests/oracle/control.h"
#include "tests/oracle/operation.h"

namespace hostmm::oracle {

class Stepper {
 public:
  explicit Stepper(Wrong wrong);
  ~Stepper();
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  // One observation for each operation; fewer, if the run could not go on.
  std::vector<Observation> Run(const Program& program);

 private:
  void MakeObject(const ObjectSpec& spec);
  void StartActor(uint32_t number);
  Observation Step(const Operation& operation, uint32_t sequence);
  Observation StepFork(Mailbox& box);
  // The other actor's end is awaited, so that nothing of it is left when the next one acts.
  void AwaitEnd(uint32_t actor);
  Observation Answer(uint32_t actor);
  // The `name`th of those that live.
  uint32_t Living(uint32_t name) const;
  uint32_t CountLiving() const;

  Control* control_;
  std::vector<int> end_fds_;  // a pidfd for each mailbox, -1 if nobody has it
};

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_STEPPER_H_
