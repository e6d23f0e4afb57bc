// Threads that work through one job together, with a barrier after each of its parts. Our own rather than OpenMP, whose
// pools multiply with the threads that call it and then sleep at every barrier: behind a server, where a thread that
// loaded the model has left a pool behind, that cost half of the speed. It also works where a compiler has no OpenMP.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <unistd.h>

namespace team {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Crew;

class Team {
  public:
    // The one of this process; a fork has a new one, for threads do not survive a fork.
    static Team& get() {
        static std::atomic<Team*> only{nullptr};
        Team* found = only.load();
        if (!found || found->process != getpid()) {
            Team* fresh = new Team;  // never deleted: its threads may outlive every destructor
            if (only.compare_exchange_strong(found, fresh)) return *fresh;
            delete fresh;
        }
        return *only.load();
    }

    // Every thread calls `work`; back when all have returned. Callers wait for each other.
    void run(int threads, const std::function<void(Crew&)>& work);

  private:
    friend class Crew;
    using Clock = std::chrono::steady_clock;
    static constexpr auto AWAKE = std::chrono::microseconds(200);  // after a job; waking takes about 50

    void help(int me);

    // Until every thread of the job is here.
    void wait(int size) {
        const unsigned now = phase.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            dealt.store(0, std::memory_order_relaxed);
            phase.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase.load(std::memory_order_acquire) == now; spins++) {
            if (spins < 20000) pause();
            else std::this_thread::yield();  // more threads than processors: let the others finish
        }
    }

    const pid_t process = getpid();
    std::mutex callers, state;
    std::condition_variable called;
    std::atomic<unsigned> jobs{0}, phase{0};
    std::atomic<int> arrived{0};
    std::atomic<int64_t> dealt{0};
    int helpers = 0, size = 1;                          // of the job; under `state`
    const std::function<void(Crew&)>* work = nullptr;  // under `state`
};

// One thread's part in a job.
class Crew {
  public:
    Crew(Team& team, int me, int size) : team(team), me(me), size(size) {}

    // f(0) … f(n - 1), an equal stretch for each thread
    template <class F> void share(int64_t n, const F& f) {
        for (int64_t i = n * me / size, end = n * (me + 1) / size; i < end; i++) f(i);
        if (size > 1) team.wait(size);
    }

    // f(0) … f(n - 1), to whoever is free: for parts of unequal length
    template <class F> void deal(int64_t n, const F& f) {
        if (size == 1) return share(n, f);
        for (int64_t i; (i = team.dealt.fetch_add(1, std::memory_order_relaxed)) < n;) f(i);
        team.wait(size);
    }

  private:
    Team& team;
    const int me, size;
};

inline void Team::run(int threads, const std::function<void(Crew&)>& job) {
    if (threads < 2) {
        Crew alone(*this, 0, 1);
        return job(alone);
    }
    std::lock_guard<std::mutex> one(callers);
    int mine;
    {
        std::lock_guard<std::mutex> lock(state);
        try {
            for (; helpers < threads - 1; helpers++) std::thread(&Team::help, this, helpers + 1).detach();
        } catch (const std::system_error&) {}  // the system gives no more threads: work with those that there are
        size = mine = helpers + 1 < threads ? helpers + 1 : threads;
        work = &job;
        jobs.fetch_add(1, std::memory_order_release);
    }
    called.notify_all();
    Crew crew(*this, 0, mine);
    job(crew);
    wait(mine);
}

inline void Team::help(int me) {
    for (unsigned seen = 0;;) {
        const auto until = Clock::now() + AWAKE;
        while (jobs.load(std::memory_order_acquire) == seen && Clock::now() < until)
            for (int i = 0; i < 16; i++) pause();
        const std::function<void(Crew&)>* mine = nullptr;
        int others = 0;
        {
            std::unique_lock<std::mutex> lock(state);
            called.wait(lock, [&] { return jobs.load(std::memory_order_relaxed) != seen; });
            seen = jobs.load(std::memory_order_relaxed);
            if (me < size) mine = work, others = size;
        }
        if (!mine) continue;
        Crew crew(*this, me, others);
        (*mine)(crew);
        wait(others);
    }
}

}  // namespace team
