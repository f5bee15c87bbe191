// swift-tools-version: 6.2
import PackageDescription

/// Every target of ours: Swift 6 mode comes with the tools version; unsafe code is marked, and no warning is left standing.
let strict: [SwiftSetting] = [
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableExperimentalFeature("Lifetimes"),
  .enableUpcomingFeature("ExistentialAny"),
]
/// Tests handle raw memory all day long: the same, without the `unsafe` marks.
let relaxed: [SwiftSetting] = [
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
]

let package = Package(
  name: "vhost-swiftd",
  products: [
    .executable(name: "vhost-swiftd", targets: ["vhost-swiftd"]),
    .library(name: "VirtQueue", targets: ["VirtQueue"]),
    .library(name: "HostIO", targets: ["HostIO"]),
    .library(name: "DeviceKit", targets: ["DeviceKit"]),
    .library(name: "VhostUser", targets: ["VhostUser"]),
    .library(name: "VhostFrontend", targets: ["VhostFrontend"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
  ],
  targets: [
    // Floor 0: what the machine gives.
    .target(name: "CLinux", cSettings: [.define("_GNU_SOURCE")]),
    .systemLibrary(name: "CLiburing", pkgConfig: "liburing", providers: [.apt(["liburing-dev"])]),
    .systemLibrary(name: "CNuma", providers: [.apt(["libnuma-dev"])]),
    .target(name: "VirtQueue", dependencies: ["CLinux"], swiftSettings: strict),
    .target(
      name: "HostIO", dependencies: ["CLinux", "CLiburing", "CNuma"], swiftSettings: strict),

    // Floor 1: what a device author reads.
    .target(name: "DeviceKit", dependencies: ["VirtQueue", "HostIO", "CLinux"], swiftSettings: strict),

    // Floor 2: devices, the wire, and the other side of the wire.
    .target(
      name: "BlockBackend", dependencies: ["DeviceKit", "VirtQueue", "HostIO"],
      swiftSettings: strict),
    .target(
      name: "NetBackend", dependencies: ["DeviceKit", "VirtQueue", "HostIO"], swiftSettings: strict),
    .target(
      name: "SwitchBackend", dependencies: ["NetBackend", "DeviceKit", "VirtQueue", "HostIO", "CLinux"],
      swiftSettings: strict),
    .target(
      name: "VhostUser",
      dependencies: [
        "DeviceKit", "VirtQueue", "HostIO", .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: strict),
    .target(name: "VhostFrontend", dependencies: ["CLinux"], swiftSettings: strict),

    // Floor 3: programs.
    .target(name: "ServiceConfig", swiftSettings: strict),
    .executableTarget(
      name: "vhost-swiftd",
      dependencies: [
        "BlockBackend", "NetBackend", "SwitchBackend", "EntropyDevice", "ServiceConfig", "VhostUser",
        "DeviceKit",
        "HostIO",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: strict),
    .target(
      name: "EntropyDevice", dependencies: ["DeviceKit", "VirtQueue", "CLinux"],
      path: "Examples/EntropyDevice", swiftSettings: strict),
    .executableTarget(
      name: "rng-backend",
      dependencies: [
        "EntropyDevice", "DeviceKit", "HostIO", "VhostUser", .product(name: "Logging", package: "swift-log"),
      ],
      path: "Examples/rng-backend", swiftSettings: strict),
    .executableTarget(
      name: "disk-check", dependencies: ["VhostFrontend"], path: "Examples/disk-check", swiftSettings: strict),
    .executableTarget(
      name: "ring-bench", dependencies: ["VirtQueue", "VhostFrontend"],
      path: "Benchmarks/ring-bench", swiftSettings: strict),
    .executableTarget(
      name: "disk-bench", dependencies: ["VhostFrontend", "CLinux"],
      path: "Benchmarks/disk-bench", swiftSettings: strict),
    .executableTarget(name: "guest-load", path: "Benchmarks/guest-load"),
    .executableTarget(
      name: "pair-bench", dependencies: ["GuestHarness", "VhostFrontend"], path: "Benchmarks/pair-bench",
      swiftSettings: relaxed),
    .executableTarget(
      name: "bench", dependencies: ["GuestHarness"], path: "Benchmarks/bench", swiftSettings: relaxed),

    .executableTarget(
      name: "net-bench",
      dependencies: ["NetBackend", "DeviceKit", "VirtQueue", "HostIO", "CLinux", "VhostFrontend"],
      path: "Benchmarks/net-bench", swiftSettings: strict),

    // Tests, one target a module, then journeys through several, the program, a guest, and the house rules.
    .target(
      name: "TestSupport", dependencies: ["NetBackend", "HostIO", "CLinux", "VhostFrontend", "MemoryTrap"],
      path: "Tests/Support/TestSupport", swiftSettings: relaxed),
    .target(name: "GuestHarness", path: "Tests/Support/GuestHarness", swiftSettings: relaxed),
    .target(name: "MemoryTrap", path: "Tests/Support/MemoryTrap"),
    .testTarget(
      name: "VirtQueueTests", dependencies: ["VirtQueue", "VhostFrontend", "TestSupport"],
      swiftSettings: relaxed),
    .testTarget(
      name: "HostIOTests", dependencies: ["HostIO", "CLinux", "TestSupport"], swiftSettings: relaxed),
    .testTarget(
      name: "DeviceKitTests",
      dependencies: ["DeviceKit", "VirtQueue", "HostIO", "VhostFrontend", "TestSupport"],
      swiftSettings: relaxed),
    .testTarget(
      name: "VhostUserTests",
      dependencies: [
        "VhostUser", "DeviceKit", "VirtQueue", "HostIO", "CLinux", "VhostFrontend", "TestSupport",
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: relaxed),
    .testTarget(
      name: "BlockBackendTests",
      dependencies: ["BlockBackend", "DeviceKit", "VirtQueue", "HostIO", "TestSupport"],
      swiftSettings: relaxed),
    .testTarget(
      name: "NetBackendTests",
      dependencies: ["NetBackend", "DeviceKit", "VirtQueue", "HostIO", "CLinux", "TestSupport"],
      swiftSettings: relaxed),
    .testTarget(
      name: "SwitchBackendTests",
      dependencies: [
        "SwitchBackend", "NetBackend", "VhostUser", "DeviceKit", "VirtQueue", "HostIO", "CLinux",
        "VhostFrontend", "TestSupport", .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: relaxed),
    .testTarget(
      name: "VhostFrontendTests", dependencies: ["VhostFrontend", "CLinux", "HostIO", "TestSupport"],
      swiftSettings: relaxed),
    .testTarget(
      name: "JourneyTests",
      dependencies: [
        "BlockBackend", "NetBackend", "EntropyDevice", "VhostUser", "DeviceKit", "VirtQueue", "HostIO",
        "VhostFrontend", "TestSupport", .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: relaxed),
    .testTarget(
      name: "DaemonTests", dependencies: ["VhostFrontend", "GuestHarness", "CLinux"],
      swiftSettings: relaxed),
    .testTarget(
      name: "GuestTests", dependencies: ["GuestHarness", "TestSupport", "VhostFrontend"],
      swiftSettings: relaxed),
    .target(
      name: "FuzzTargets",
      dependencies: [
        "BlockBackend", "NetBackend", "ServiceConfig", "VhostUser", "DeviceKit", "VirtQueue", "HostIO",
        "CLinux",
        .product(name: "Logging", package: "swift-log"),
      ], path: "Fuzz/Targets", swiftSettings: relaxed),
    .testTarget(name: "FuzzTests", dependencies: ["FuzzTargets"], swiftSettings: relaxed),
    .target(name: "MallocCount", path: "Tests/Support/MallocCount"),
    .testTarget(
      name: "SpeedTests",
      dependencies: [
        "DeviceKit", "VirtQueue", "HostIO", "VhostFrontend", "TestSupport", "GuestHarness", "MallocCount",
      ], exclude: ["instructions.json"], swiftSettings: relaxed),
    .testTarget(name: "HouseTests", dependencies: ["TestSupport"], swiftSettings: relaxed),
  ]
)

// libFuzzer's program is built with its instrumentation only, by scripts/fuzz.
if Context.environment["VHOST_SWIFTD_FUZZ"] != nil {
  package.targets.append(
    .executableTarget(
      name: "fuzz-run", dependencies: ["FuzzTargets"], path: "Fuzz/Run", swiftSettings: relaxed))
}
