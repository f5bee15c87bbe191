// What is fuzzed: each target takes any bytes at all, plays them against one part of the back-end, and says what was wrong.
// Called by Fuzz/Run (libFuzzer) and by Tests/FuzzTests (the seeds in the tree, and bytes of its own). One thread.

/// Something that must not happen whatever the input is. A trap or a sanitizer's report needs no words.
public struct Defect: Error, CustomStringConvertible {
  public let description: String
  init(_ description: String) { self.description = description }
}

/// One part of the back-end, open to any bytes.
public struct FuzzTarget: Sendable {
  public let name: String
  /// One line for `scripts/fuzz --list`.
  public let about: String
  /// How many bytes an input has at most.
  public let longest: Int
  /// Plays one input. Leaves nothing behind that another input could see.
  public let play: @Sendable (_ input: [UInt8]) throws -> Void

  public static let all: [FuzzTarget] = [
    RingTarget.split, RingTarget.packed, RingTarget.inflight, BlockTarget.target, NetTarget.target,
    SessionTarget.target, StateTarget.target, ConfigTarget.target,
  ]

  public static func named(_ name: String) -> FuzzTarget? { all.first { $0.name == name } }
}
