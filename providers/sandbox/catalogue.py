"""What the practice cloud has for rent: invented machines at prices of the kind that marketplaces showed in 2026."""

from __future__ import annotations

from decimal import Decimal

from providers.base import Offer, Prices

# id, machine, GPU, VRAM GiB, USD/h, disk USD/GiB/month, up and down USD/GiB,
# disk GiB, down and up Mbit/s, reliability, verified, region, interruptible
_ROWS: tuple[tuple[str, str, str, float, str, str, str, str, int, float, float, float, bool, str, bool], ...] = (
    ("2001", "m-301", "RTX 3060", 12.0, "0.060", "0.10", "0.003", "0.003", 180, 480, 220, 0.991, True, "SE", False),
    ("2002", "m-302", "RTX 3090", 24.0, "0.165", "0.12", "0.002", "0.004", 400, 870, 640, 0.996, True, "CZ", False),
    ("2003", "m-303", "RTX 3090", 24.0, "0.138", "0.20", "0.020", "0.020", 250, 310, 95, 0.962, False, "US", False),
    ("2004", "m-304", "RTX 4090", 24.0, "0.345", "0.15", "0.002", "0.003", 600, 2400, 1900, 0.998, True, "NO", False),
    ("2005", "m-305", "RTX 4090", 24.0, "0.292", "0.30", "0.015", "0.010", 350, 720, 410, 0.989, True, "US", False),
    ("2006", "m-306", "RTX 4090", 24.0, "0.174", "0.15", "0.002", "0.003", 500, 1800, 1200, 0.993, True, "FR", True),
    ("2007", "m-307", "RTX 5090", 32.0, "0.478", "0.18", "0.003", "0.003", 700, 3100, 2600, 0.997, True, "IS", False),
    ("2008", "m-308", "RTX 5090", 32.0, "0.402", "0.15", "0.009", "0.009", 450, 900, 700, 0.971, False, "CN", False),
    ("2009", "m-309", "RTX A6000", 48.0, "0.415", "0.12", "0.001", "0.002", 900, 4200, 3800, 0.998, True, "CA", False),
    ("2010", "m-310", "RTX 6000 Ada", 48.0, "0.640", "0.15", "0.002", "0.002", 800, 5100, 4700, 0.999, True, "NL", False),
    ("2011", "m-311", "L40S", 48.0, "0.585", "0.15", "0", "0", 1000, 6000, 6000, 0.999, True, "US", False),
    ("2012", "m-312", "A100 SXM4", 80.0, "0.890", "0.10", "0", "0", 1500, 8000, 8000, 0.999, True, "US", False),
    ("2013", "m-313", "H100 SXM", 80.0, "1.950", "0.10", "0", "0", 2000, 10000, 10000, 0.999, True, "FI", False),
    ("2014", "m-314", "H100 SXM", 80.0, "1.120", "0.10", "0", "0", 2000, 10000, 10000, 0.995, True, "FI", True),
)
HOURS_PER_MONTH = 30 * 24


def catalogue() -> tuple[Offer, ...]:
    """Every offer when nothing is rented."""
    return tuple(_offer(*row) for row in _ROWS)


def _offer(  # noqa: PLR0917 - one row of the table above
    id_: str,
    machine: str,
    gpu: str,
    vram_gib: float,
    gpu_usd: str,
    disk_usd_month: str,
    upload_usd: str,
    download_usd: str,
    disk_gib: int,
    down: float,
    up: float,
    reliability: float,
    verified: bool,
    region: str,
    interruptible: bool,
) -> Offer:
    prices = Prices(
        gpu_usd_per_hour=Decimal(gpu_usd),
        disk_usd_per_gib_hour=round(Decimal(disk_usd_month) / HOURS_PER_MONTH, 9),
        upload_usd_per_gib=Decimal(upload_usd),
        download_usd_per_gib=Decimal(download_usd),
    )
    return Offer(
        provider="sandbox",
        id=id_,
        machine_id=machine,
        gpu_name=gpu,
        vram_gib=vram_gib,
        prices=prices,
        disk_gib=disk_gib,
        down_mbit_s=down,
        up_mbit_s=up,
        reliability=reliability,
        verified=verified,
        region=region,
        interruptible=interruptible,
    )
