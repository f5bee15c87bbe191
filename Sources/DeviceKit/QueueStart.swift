// A queue on its way from the control thread to its queue thread, by way of the device, which decides what serves it.

import HostIO
import VirtQueue

/// A queue that is about to start, given to `VirtioDevice.start`. The device ends it with `run`.
public struct QueueStart: ~Copyable {
  /// Which of the device's queues.
  public let index: Int
  /// Its size in descriptors.
  public let size: UInt16
  /// What was negotiated.
  public let features: FeatureSet
  /// The device's `descriptors`, as operations name them.
  public let files: [FileSlot]
  @usableFromInline let launch: Launch

  init(index: Int, size: UInt16, features: FeatureSet, files: [FileSlot], launch: Launch) {
    self.index = index
    self.size = size
    self.features = features
    self.files = files
    self.launch = launch
  }

  /// Has the queue served by the worker that `make` returns. `make` runs once, on the queue's thread; the loop
  /// that drives the worker is specialised for it, at no cost per request.
  @inlinable
  public consuming func run<W: QueueWorker & ~Copyable>(_ make: @escaping @Sendable () -> W) {
    let packed = features.contains(.packedRing)
    launch.makeRunner = { place throws(RingLayoutError) in
      if packed {
        let ring = try PackedRing(place.layout, map: place.map, inflight: place.inflight)
        let runner = RunnerBox(ring: ring, worker: make(), place: place)
        return RunnerEntry(runner, turn: { runner.turn() }, reap: { runner.reap() })
      }
      let ring = try SplitRing(place.layout, map: place.map, inflight: place.inflight)
      let runner = RunnerBox(ring: ring, worker: make(), place: place)
      return RunnerEntry(runner, turn: { runner.turn() }, reap: { runner.reap() })
    }
  }
}

extension QueueStart {
  /// As `run`, for a worker that other queues of the same thread hand things to: `open` gets the way there, on the queue's
  /// thread, when the queue starts. It is to be let go when the worker's `drain` is called.
  @inlinable
  public consuming func run<W: NeighbourWorker & ~Copyable>(
    _ make: @escaping @Sendable () -> W, reachable open: @escaping @Sendable (QueueDoor<W.Parcel>) -> Void
  ) {
    let packed = features.contains(.packedRing)
    launch.makeRunner = { place throws(RingLayoutError) in
      if packed {
        let ring = try PackedRing(place.layout, map: place.map, inflight: place.inflight)
        let runner = RunnerBox(ring: ring, worker: make(), place: place)
        open(QueueDoor { runner.hand($0) })
        return RunnerEntry(runner, turn: { runner.turn() }, reap: { runner.reap() })
      }
      let ring = try SplitRing(place.layout, map: place.map, inflight: place.inflight)
      let runner = RunnerBox(ring: ring, worker: make(), place: place)
      open(QueueDoor { runner.hand($0) })
      return RunnerEntry(runner, turn: { runner.turn() }, reap: { runner.reap() })
    }
  }
}

/// Makes the runner of a queue, on the queue's thread.
@usableFromInline typealias RunnerMaker = @Sendable (RunnerPlace) throws(RingLayoutError) -> RunnerEntry

/// Carries the device's choice back to the host. Used by one control thread, during one call of `start`.
@usableFromInline final class Launch {
  @usableFromInline var makeRunner: RunnerMaker?
  @usableFromInline init() {}
}
