// Owns the one Nest module: it gives the routes the plain classes, and nothing more.
import 'reflect-metadata';
import { Module, type DynamicModule } from '@nestjs/common';
import { PARTS, type Parts } from './parts.ts';
import { EventRoutes } from './routes/events.ts';
import { GrantRoutes } from './routes/grants.ts';
import { HostRoutes } from './routes/hosts.ts';
import { LedgerRoutes } from './routes/ledger.ts';
import { PolicyRoutes } from './routes/policies.ts';
import { SecretRoutes } from './routes/secrets.ts';
import { StatusRoutes } from './routes/status.ts';

@Module({})
export class ControlPlaneModule {
  static with(parts: Parts): DynamicModule {
    return {
      module: ControlPlaneModule,
      controllers: [
        SecretRoutes,
        PolicyRoutes,
        HostRoutes,
        GrantRoutes,
        LedgerRoutes,
        EventRoutes,
        StatusRoutes,
      ],
      providers: [{ provide: PARTS, useValue: parts }],
    };
  }
}
